"""Workers: Ray actors with a GPU, a part of one, or CPUs, and how work is dealt to them."""
