"""What the user asked for: what to record and how to choose tokens. Loads nothing heavy."""

from dataclasses import dataclass


@dataclass
class Options:
    """What the user asked for. `query_window` None records all queries; `output_proj` None none, `[]` all recorded layers."""

    layers: list[int] | None = None
    query_window: int | None = None
    stats: bool = False
    output_proj: list[int] | None = None
    hidden: bool = False
    final_hidden: bool = False
    retention_gates: str | None = None
    attention: bool = False
    second_pass: bool = False
    sensitivity: int = 0  # samples
    seed: int = 0  # of the samples


@dataclass
class Sampling:
    """Temperature and nucleus sampling; `enabled=False` is greedy decoding."""

    enabled: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def rule(self) -> str:
        if not self.enabled:
            return "greedy"
        return f"sampled (temperature {self.temperature:g}, top_p {self.top_p:g}, seed {self.seed})"
