"""The commands of `metaser`, one file a subject; `metaser.cli` names them."""
