"""Speak one made-up corpus: the program of the new process that `generate` starts."""

import argparse
from pathlib import Path

from metaser.synthetic.corpus import speak_corpus
from metaser.synthetic.texts import LANGUAGES


def _main(arguments: list[str] | None = None) -> None:
    """Speak the corpus that the command line describes."""
    parser = argparse.ArgumentParser(description="Speak one synthetic corpus (used by generate).")
    parser.add_argument("folder", type=Path)
    parser.add_argument("language", choices=sorted(LANGUAGES))
    for name in ("speakers", "sentences", "seed"):
        parser.add_argument(name, type=int)
    speak_corpus(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    _main()
