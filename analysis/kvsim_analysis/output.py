"""Figures as files: drawn in a theme, written under a temporary name and renamed, so that none is ever seen half-written."""

import os

import matplotlib

from . import style
from .errors import UserError, nearest

FORMATS = ("png", "svg", "pdf")


def save(args, folder, command, draw):
    """Draws what `draw()` returns in the theme asked for and writes it; returns the path.

    `args.output` and `args.theme` as options.add_output declares them; without --output it is `<command>.png` in the
    results folder. The path is checked before any work.
    """
    path, extension = output_path(args.output, folder, command)
    with matplotlib.rc_context(style.rc(args.theme)):
        write(draw(), path, extension)
    return path


def output_path(asked, folder, command):
    """(path, format) of the figure: as asked, or `<command>.png` in the results folder. Checked before any work."""
    if asked is None:
        # A folder that does not exist is the loader's to explain.
        return os.path.join(os.path.dirname(folder) if os.path.isfile(folder) else folder, f"{command}.png"), "png"
    path = asked
    extension = os.path.splitext(path)[1][1:].lower()
    if extension not in FORMATS:
        close = nearest(extension, FORMATS) if extension else None
        hint = f"did you mean .{close}?" if close else "give it one of .png, .svg, .pdf"
        raise UserError(f"cannot tell the format of {path}; {hint}")
    parent = os.path.dirname(path) or "."
    if not os.path.isdir(parent):
        raise UserError(f"cannot write {path}: no such folder: {parent}")
    if os.path.isdir(path):
        raise UserError(f"cannot write {path}: it is a folder")
    return path, extension


def write(figure, path, extension):
    """Saves the figure at `path`. Raises UserError when the folder or the disk refuses it."""
    parent, name = os.path.split(path)
    temporary = os.path.join(parent, f".{name}.{os.getpid()}.tmp")
    metadata = {"png": {"Software": "kvsim-plot"}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[extension]
    try:
        figure.savefig(temporary, format=extension, metadata=metadata)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
