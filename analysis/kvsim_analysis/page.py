"""Places panels, legends, title and notes on a page by measuring them, so that no text meets another."""

import textwrap

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .style import THEMES

LEFT, RIGHT, GAP = 0.70, 0.16, 0.68  # inches beside and between panels
HEADER, BELOW, PAD = 0.21, 0.47, 0.10  # above a panel, under it (ticks and label), between blocks
PANEL_SIZES = {1: (4.7, 3.0), 2: (3.5, 2.6), 3: (2.62, 2.4)}


class Page:
    """A figure of `count` equal panels (`axes`), at most `columns` beside each other.

    Call `legend`, `notes` and `title` in any order, then `finish`, which measures them and fixes all positions.
    """

    def __init__(self, count, theme, columns=3, size=None, gap=GAP, row_gap=0.0, right=RIGHT, header=HEADER, left=LEFT):
        self.theme = THEMES[theme]
        self.columns = 2 if count == 4 and columns == 3 else min(count, columns)
        self.rows = -(-count // self.columns)
        self.size = size or PANEL_SIZES[min(3, self.columns)]
        self.gap, self.row_gap, self.header, self.left = gap, row_gap, header, left
        self.width = left + right + self.columns * self.size[0] + (self.columns - 1) * gap
        self.figure = Figure(figsize=(self.width, 4))
        FigureCanvasAgg(self.figure)
        self.axes = [self.figure.add_axes([0.1, 0.1, 0.5, 0.5]) for _ in range(count)]
        self.blocks = []  # legends and notes under the panels, from top to bottom
        self.heading = None

    def legend(self, looks, heading=None):
        """Adds the legend of some variants under the panels, in as many columns as fit."""
        if not looks:
            return
        handles = [Line2D([], [], label=_fold(look.label), **look.line(self._theme_name())) for look in looks]
        options = dict(
            handles=handles,
            loc="upper left",
            borderpad=0,
            borderaxespad=0,
            handlelength=2.9,
            columnspacing=1.5,
            labelspacing=0.42,
            handletextpad=0.6,
            title=heading,
            alignment="left",
        )
        best = None
        for columns in range(min(len(handles), 6), 0, -1):
            legend = self.figure.legend(ncols=columns, **options)
            if self._extent(legend)[0] <= self.width - self.left - 0.1 or columns == 1:
                best = legend
                break
            legend.remove()
        if heading:
            best.get_title().set(fontsize=7.2, color=self.theme["faint"])
        self.blocks.append(best)

    def notes(self, *sentences):
        """Adds small print: what was averaged, what the band is, what was left out."""
        text = "; ".join(s for s in sentences if s)
        if text:
            lines = "\n".join(textwrap.wrap(text[0].upper() + text[1:] + ".", int((self.width - self.left) * 18.0)))
            self.blocks.append(
                self.figure.text(0, 0, lines, fontsize=7, color=self.theme["faint"], va="top", linespacing=1.35)
            )

    def title(self, text):
        """Sets the line above the panels; an empty text leaves it out."""
        if text:
            lines = "\n".join(textwrap.wrap(text, int((self.width - 0.3) * 12.5)))
            self.heading = self.figure.text(0, 0, lines, fontsize=9.5, fontweight="bold", va="top")

    def panel_note(self, ax, text):
        """Small text over a panel, at its left."""
        ax.text(0, 1.018, text, transform=ax.transAxes, fontsize=7, color=self.theme["faint"], va="bottom", ha="left")

    def y_label(self, ax, text):
        """Labels a panel's y axis, in smaller letters where the panel is too low for it."""
        label = ax.yaxis.label
        label.set_text(text)
        room, height = self.size[1] + 0.1, self._extent(label)[1]
        if height > room:
            label.set_fontsize(label.get_fontsize() * room / height)

    def finish(self):
        """Fixes the height of the page and puts everything in place; returns the figure."""
        top = PAD + (self._extent(self.heading)[1] + 0.08 if self.heading else 0)
        row = self.header + self.size[1] + BELOW + self.row_gap
        sizes = [self._extent(b)[1] for b in self.blocks]
        height = top + self.rows * row + sum(s + PAD for s in sizes) + 0.06
        self.figure.set_size_inches(self.width, height)
        if self.heading:
            self.heading.set_position((0.12 / self.width, 1 - PAD / height))
        for i, ax in enumerate(self.axes):
            x = self.left + (i % self.columns) * (self.size[0] + self.gap)
            y = top + (i // self.columns) * row + self.header + self.size[1]
            ax.set_position([x / self.width, 1 - y / height, self.size[0] / self.width, self.size[1] / height])
        y = top + self.rows * row + 0.02
        for block, size in zip(self.blocks, sizes):
            at = (self.left / self.width, 1 - y / height)
            if hasattr(block, "set_bbox_to_anchor"):
                block.set_bbox_to_anchor(at, transform=self.figure.transFigure)
            else:
                block.set_position(at)
            y += size + PAD
        return self.figure

    def _extent(self, artist):
        box = artist.get_window_extent(self.figure.canvas.get_renderer())
        return box.width / self.figure.dpi, box.height / self.figure.dpi

    def _theme_name(self):
        return next(name for name, theme in THEMES.items() if theme is self.theme)


def _fold(label, most=72):
    """A label broken after commas when it is too long for a legend."""
    if len(label) <= most:
        return label
    return "\n".join(textwrap.wrap(label.replace(",", ", "), most, break_long_words=True))
