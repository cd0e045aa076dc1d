"""Colours that belong to a policy: the same in every figure, apart for colour-blind readers, shaded for variants.

The hues were chosen by annealing so that any two differ by at least 0.098 in OKLab for normal vision and
for simulated protanopia and deuteranopia (Machado, Oliveira, Fernandes, 2009, severity 1).
"""

import zlib

import numpy as np

BLUE, CYAN, INDIGO, VIOLET, PURPLE = "#159df9", "#0bd1fd", "#4f61d5", "#572595", "#934896"
LAVENDER, PINK, ROSE, MAROON = "#9480b9", "#e9a3c0", "#d05073", "#812211"
OCHRE, LIME, OLIVE, GREEN = "#b58204", "#bbc922", "#5f6e24", "#4ebc77"
PALETTE = (BLUE, MAROON, GREEN, OCHRE, VIOLET, ROSE, CYAN, OLIVE, PINK, INDIGO, LIME, PURPLE, LAVENDER)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "*", "d")

# The same hues (within 17 degrees) chosen again for a dark page, at least 0.10 apart.
_DARK = {
    BLUE: "#3e7ca0",
    MAROON: "#ba5002",
    GREEN: "#6effa9",
    OCHRE: "#c48d1f",
    VIOLET: "#d8bafd",
    ROSE: "#fc9c98",
    CYAN: "#acf7ff",
    OLIVE: "#f6ef31",
    PINK: "#d03274",
    INDIGO: "#4991ff",
    LIME: "#a3cd07",
    PURPLE: "#ab92c0",
    LAVENDER: "#7c56d7",
}

# A policy's colour and marker. The first thirteen have a colour of their own; the others share one, and differ from its
# owner in marker and dashes.
KNOWN = {
    "snapkv": (BLUE, "o"),
    "h2o": (MAROON, "s"),
    "expected_attention": (GREEN, "^"),
    "streaming_llm": (OCHRE, "D"),
    "pyramidkv": (VIOLET, "v"),
    "ada": (ROSE, "P"),
    "lagkv": (CYAN, "X"),
    "chunkkv": (OLIVE, "p"),
    "knorm": (PINK, "<"),
    "compose": (INDIGO, ">"),
    "external": (LIME, "h"),
    "tova": (PURPLE, "*"),
    "keydiff": (LAVENDER, "d"),
    "observed_attention": (MAROON, "v"),
    "critical": (ROSE, "X"),
    "chunk": (OLIVE, "s"),
    "laq": (CYAN, "o"),
    "laq_pp": (CYAN, "^"),
    "cur": (GREEN, "d"),
    "noncausal": (OCHRE, "o"),
    "leverage": (VIOLET, "D"),
    "compactor": (INDIGO, "s"),
    # Policies that evict while decoding: those with a form for the prompt keep its hue.
    "decode:streaming_llm": (OCHRE, ">"),
    "decode:h2o": (MAROON, "D"),
    "decode:tova": (PURPLE, "o"),
    "decode:keydiff": (LAVENDER, "s"),
    "decode:knorm": (PINK, ">"),
    "decode:scissorhands": (BLUE, "s"),
    "decode:keyformer": (GREEN, "o"),
    "decode:vatp": (ROSE, "D"),
    "decode:corm": (CYAN, "p"),
    "decode:cake": (VIOLET, "P"),
    "decode:r_kv": (INDIGO, "o"),
    "decode:skipkv": (OLIVE, "^"),
    "decode:trim_kv": (LIME, "D"),
    "decode:obcache": (OCHRE, "v"),
    "decode:caote": (MAROON, "X"),
    "decode:fast_caote": (PURPLE, "X"),
    "decode:dms": (PINK, "s"),
    "decode:decoding": (LAVENDER, "o"),
    "decode:cam": (BLUE, "^"),
}
REFERENCES = ("full", "oracle_static", "oracle_topk", "oracle_output", "random")

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)  # OKLab, Ottosson 2020
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def policy_color(policy, theme="light"):
    """The colour "#rrggbb" of a policy by its name alone; unknown names get a lasting one from the same palette."""
    return themed(KNOWN[policy][0] if policy in KNOWN else PALETTE[_hash(policy) % len(PALETTE)], theme)


def themed(color, theme):
    """The form that a colour of PALETTE has on a theme's page."""
    return _DARK[color] if theme == "dark" else color


def policy_marker(policy):
    """The marker of a policy by its name alone."""
    return KNOWN[policy][1] if policy in KNOWN else MARKERS[_hash(policy) // len(PALETTE) % len(MARKERS)]


def policy_dash(policy):
    """Number of the dash pattern of a policy's first variant: 0 for the owner of a colour."""
    if policy in KNOWN:
        return 0 if list(KNOWN).index(policy) < len(PALETTE) else 1
    return 1 + _hash(policy) // (len(PALETTE) * len(MARKERS)) % 3


def shades(color, count, theme="light"):
    """`count` colours of one hue, from dark to light around `color`; `color` itself for one."""
    if count == 1:
        return [color]
    light, chroma, hue = to_lch(color)
    low, high = (0.36, 0.78) if theme == "light" else (0.54, 0.87)
    span = min(0.40, 0.13 * (count - 1)) / 2
    center = min(max(light, low + span), high - span)
    return [from_lch(v, chroma, hue) for v in np.linspace(center - span, center + span, count)]


def _hash(name):
    return zlib.crc32(name.encode("utf-8"))


def linear_rgb(color):
    """Linear light of "#rrggbb" as three numbers in 0..1."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def oklab(linear):
    """OKLab of linear rgb [..., 3]."""
    return np.cbrt(np.clip(linear, 0, None) @ _TO_LMS.T) @ _TO_LAB.T


def to_lch(color):
    """Lightness, chroma and hue angle in OKLab."""
    light, a, b = oklab(linear_rgb(color))
    return float(light), float(np.hypot(a, b)), float(np.arctan2(b, a))


def from_lch(light, chroma, hue):
    """The nearest displayable "#rrggbb", giving up chroma before lightness."""
    for scale in np.linspace(1, 0, 41):
        lab = np.array([light, scale * chroma * np.cos(hue), scale * chroma * np.sin(hue)])
        linear = ((lab @ np.linalg.inv(_TO_LAB).T) ** 3) @ np.linalg.inv(_TO_LMS).T
        if (linear > -1e-4).all() and (linear < 1.0001).all():
            break
    linear = np.clip(linear, 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{int(round(255 * float(v))):02x}" for v in np.clip(rgb, 0, 1))
