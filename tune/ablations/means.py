"""Mean scores for the manifest of the ablations."""

from collections.abc import Iterable, Sequence

from tune.manifest import row_means
from tune.records import Kind, Record, Variant


def published_means(records: Iterable[Record], tasks: Sequence[str]) -> dict[str, float]:
    """Mean test score, over seeds, of the references and of published settings on all tasks."""
    every = ",".join(tasks)
    return row_means(
        (
            record
            for record in records
            if record.kind is Kind.EVALUATION
            and record.variant in (Variant.REFERENCE, Variant.PUBLISHED)
            and record.inputs.get("merged", every) == every
        ),
        tasks,
    )
