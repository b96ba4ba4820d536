"""A search of DOGE TA's parameters by drawing them."""

from collections.abc import Mapping, Sequence

import numpy as np

from apgd.methods import Limit, Value, methods
from tune.ablations.bench import Bench, Merge
from tune.ablations.settings import SUBJECT
from tune.evaluators import Purpose, mean_score
from tune.studies import searched

_ENTROPY = 13


def draws(bench: Bench, seed: int) -> list[dict[str, Value]]:
    """The settings that a search tries after the published ones: those of all experts' seeds.

    More trials leave the earlier ones as they are.
    """
    limits = {Limit.RANK: bench.rank, Limit.EXPERTS: len(bench.tasks)}
    generator = np.random.default_rng([_ENTROPY, seed])
    found = []
    for _ in range(bench.settings.effective_trials - 1):
        drawn: dict[str, Value] = {}
        for declared in searched(methods[SUBJECT]):
            low, limit = declared.search or (0, 0)
            high = limits[limit] if isinstance(limit, Limit) else limit
            ends = np.log([low, high]) if declared.log else np.array([low, high])
            place = float(generator.uniform(*ends))
            value = float(np.exp(place)) if declared.log else place
            drawn[declared.name] = round(value) if declared.kind is int else value
        found.append(drawn)
    return found


def random_search(
    bench: Bench, cells: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], Mapping[str, Value]]:
    """The best settings by mean validation score of every (seed of experts, seed of search)."""
    published = bench.merge(Purpose.SEARCH)
    tried: dict[int, list[Merge]] = {
        seed: [published, *(bench.merge(Purpose.SEARCH, drawn) for drawn in draws(bench, seed))]
        for seed in {search for _, search in cells}
    }
    bench.score("noise: search", [(m, expert) for expert, search in cells for m in tried[search]])

    def best(expert: int, search: int) -> Merge:
        """Of equals, the earliest."""
        return max(tried[search], key=lambda m: mean_score(bench.record(m, expert), bench.tasks))

    return {(expert, search): best(expert, search).settings for expert, search in cells}
