"""A published name: `emu3.published_names` has what it is called here."""

from emu3.errors import run_main
from emu3.published_names import stand_in

if __name__ == "__main__":
    run_main(lambda: stand_in("rl/nano_aha_moment.py"))
