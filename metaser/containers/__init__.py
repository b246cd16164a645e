"""What an audio file really holds, whatever its header says.

Headers state lengths that are estimated, unknown, or those of another file. `examine` looks at the
parts that a file is made of and says which bytes a decoder must be given to read all of them.
"""

from metaser.containers import chunks, content, ffmpeg, flac, mpeg, ogg
from metaser.containers.content import Content, Piece, Splice
from metaser.containers.examine import examine

MODULES = (chunks, content, ffmpeg, flac, mpeg, ogg)
"""The modules that decide what is read of a file."""

__all__ = ["MODULES", "Content", "Piece", "Splice", "examine", "ffmpeg"]
