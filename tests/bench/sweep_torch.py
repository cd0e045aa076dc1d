#!/usr/bin/env python3
"""What a careful PyTorch user would run instead of kvsim: the baseline of the sweep's speed.

Reads the same trace. Once per KV head: logits, softmax, exact outputs, ranks (a stable sort) and needed sets. Then, per
point (ranking, budget): one softmax over what is kept, one product with the values, and from them output error, attention
recall, query consistency, set consistency and miss rates, every step and query head. Three ways are timed on the first head
and the fastest is kept per budget: filling the whole logits ("mask"), gathering the kept columns ("gather"), and gathering
rows of logits that were transposed once ("token"); --methods mask,gather leaves the transposed copies to kvsim, whose idea
they are. Sums over kept tokens (recall, misses) are products with a 0/1 vector, or over gathered rows where few are kept. With
--dtype bfloat16 the per-point product runs in half precision (its error is printed). Rankings are the oracle's scores under
growing noise: what a ranking costs to compute is not counted here, as it is the same work for both.

    ~/.cache/kvsim/record/bin/python tests/bench/sweep_torch.py trace.h5 --rankings 30 --budgets 16 --threads 2

All points are run unless --max-heads or --max-rankings is given; the total is then extrapolated, and the output says so.
--dump writes, as comma-separated text, the metrics of the ranking without noise, which is the oracle's (what kvsim calls
oracle_static), per layer, KV head and budget: tests/bench/sweep compares them with kvsim's. --json writes the timings.
"""
import argparse
import csv
import json
import time

import h5py
import torch

MASS_FRACTIONS = (0.5, 0.9, 0.99)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--rankings", type=int, default=30)
    parser.add_argument("--budgets", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the per-point product")
    parser.add_argument("--max-heads", type=int, help="run so many KV heads and extrapolate")
    parser.add_argument("--max-rankings", type=int, help="run so many rankings and extrapolate")
    parser.add_argument("--methods", default="mask,gather,token", help="ways to choose from")
    parser.add_argument("--budget-list", help="budgets in tokens, separated by commas, instead of --budgets even ones")
    parser.add_argument("--dump", help="write the metrics of the ranking without noise to this file")
    parser.add_argument("--json", help="write the timings to this file")
    return parser.parse_args()


DUMPED = ("output_error", "attention_recall", "query_consistency", "set_consistency", "miss_rate", "miss_rate_50", "miss_rate_99")


def read_head(layer, head, group, steps):
    """Keys [n, d], values [n, dv] and the decode queries [group * steps, d] of one KV head, float32."""
    key = torch.from_numpy(layer["key"][head].astype("float32"))
    value = torch.from_numpy(layer["value"][head].astype("float32"))
    query = torch.from_numpy(layer["query"][head * group:(head + 1) * group, -steps:].astype("float32"))
    return key, value, query.reshape(group * steps, -1)


class Head:
    """What all points of one KV head share."""

    def __init__(self, key, value, query, prompt, steps, scale, softcap, window):
        tokens, rows = key.shape[0], query.shape[0]
        position = prompt + torch.arange(rows) % steps
        logits = torch.mm(query, key.T).mul_(scale)
        if softcap > 0:
            logits = softcap * torch.tanh(logits / softcap)
        at = torch.arange(tokens)
        hidden = at > position[:, None]
        if window > 0:
            hidden |= at <= position[:, None] - window
        self.logits = logits.masked_fill_(hidden, float("-inf"))
        self.prompt, self.steps, self.value = prompt, steps, value
        self.weights = torch.softmax(self.logits, dim=1)
        self.output = torch.mm(self.weights, value)
        self.norm = self.output.norm(dim=1)
        sorted_weights, order = torch.sort(self.weights, dim=1, descending=True, stable=True)
        mass = sorted_weights.cumsum(dim=1, dtype=torch.float64)
        rank_in_row = torch.empty_like(order, dtype=torch.int32)
        rank_in_row.scatter_(1, order, torch.arange(tokens, dtype=torch.int32).expand(rows, -1))
        needed = []
        for c in MASS_FRACTIONS:
            size = (mass < c * mass[:, -1:]).sum(dim=1) + 1
            needed.append(rank_in_row < size[:, None])
        self.needed_size = torch.stack([of_row.sum(dim=1) for of_row in needed]).float()
        # What is summed over kept tokens, one row per token: weights, then membership of each needed set.
        self.summed = torch.cat([self.weights.T] + [of_row.T.float() for of_row in needed], dim=1).contiguous()
        is_prompt = order < prompt
        prompt_rank = torch.empty_like(rank_in_row)
        prompt_rank.scatter_(1, order, (is_prompt.cumsum(dim=1, dtype=torch.int32) - 1))
        self.rank = prompt_rank[:, :prompt].T.contiguous()
        self.logits_by_token = self.logits.T.contiguous()
        self.oracle = self.weights[:, :prompt].sum(dim=0, dtype=torch.float64)
        self.oracle_order = torch.sort(self.oracle, descending=True, stable=True).indices
        self.decode = torch.arange(prompt, tokens)

    def product(self, weights, value, dtype):
        if dtype == torch.float32:
            return torch.mm(weights, value)
        return torch.mm(weights.to(dtype), value.to(dtype)).float()

    def kept_output(self, kept, method, dtype):
        """Attention over the kept tokens alone."""
        if method == "token":
            weights = torch.softmax(self.logits_by_token.index_select(0, kept), dim=0)
            return self.product(weights.T, self.value.index_select(0, kept), dtype)
        if method == "gather":
            weights = torch.softmax(self.logits.index_select(1, kept), dim=1)
            return self.product(weights, self.value.index_select(0, kept), dtype)
        mask = torch.ones(self.logits.shape[1], dtype=torch.bool)
        mask[kept] = False
        return self.product(torch.softmax(self.logits.masked_fill(mask, float("-inf")), dim=1), self.value, dtype)

    def kept_sums(self, kept):
        """Recall and the kept part of each needed set: sums over the kept tokens of `summed`, [4, rows]."""
        if 4 * kept.numel() < self.summed.shape[0]:
            sums = self.summed.index_select(0, kept).sum(dim=0)
        else:
            held = torch.zeros(self.summed.shape[0])
            held[kept] = 1
            sums = torch.mv(self.summed.T, held)
        return sums.view(1 + len(MASS_FRACTIONS), -1)

    def point(self, order, budget, method, dtype):
        """All metrics of one (ranking, budget): per-row tensors and one set consistency."""
        chosen = order[:budget].sort().values  # ascending: gathered in the order of memory
        kept = torch.cat((chosen, self.decode))
        error = (self.kept_output(kept, method, dtype) - self.output).norm(dim=1) / self.norm
        sums = self.kept_sums(kept)
        query = (self.rank.index_select(0, chosen) < budget).sum(dim=0) / budget
        ideal = torch.zeros(self.prompt, dtype=torch.bool)
        ideal[self.oracle_order[:budget]] = True
        same_set = ideal[chosen].sum() / budget
        return error, sums[0], query, same_set, 1 - sums[1:] / self.needed_size


def fastest_methods(head, order, budgets, dtype, candidates):
    """Per budget, the quickest way, measured."""
    methods = []
    for budget in budgets:
        taken = {}
        for method in candidates:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                head.point(order, budget, method, dtype)
                times.append(time.perf_counter() - start)
            taken[method] = min(times)
        methods.append(min(taken, key=taken.get))
    return methods


def noisy_rankings(oracle, count):
    """Orders of the prompt by the oracle's scores under growing noise (seeded)."""
    generator = torch.Generator().manual_seed(1)
    log_score = torch.log(oracle + 1e-30)
    spread = log_score.std()
    for i in range(count):
        noise = torch.randn(log_score.shape, generator=generator, dtype=torch.float64)
        yield torch.sort(log_score + noise * spread * i / max(1, count), descending=True, stable=True).indices


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, options.dtype)
    trace = h5py.File(options.trace, "r")
    attributes = trace.attrs
    prompt, steps = int(attributes["prompt_len"]), int(attributes["decode_len"])
    kv_heads = int(attributes["num_kv_heads"])
    group = int(attributes["num_query_heads"]) // kv_heads
    layers = sorted(trace["layers"])
    budgets = sorted({max(1, prompt * (i + 1) // options.budgets) for i in range(options.budgets)})
    if options.budget_list:
        budgets = sorted(int(part) for part in options.budget_list.split(","))
    heads = [(layer, head) for layer in layers for head in range(kv_heads)]
    run_heads = heads[:options.max_heads] if options.max_heads else heads
    run_rankings = min(options.rankings, options.max_rankings or options.rankings)
    print(f"{options.trace}: {len(layers)} layers x {kv_heads} KV heads, {group * steps} rows, prompt {prompt}; "
          f"torch {torch.__version__}, {options.threads} threads, per-point product in {options.dtype}")

    once, points, read, methods, dumped = [], [], 0.0, None, []
    sums = {"output_error": 0.0, "attention_recall": 0.0, "query_consistency": 0.0, "set_consistency": 0.0,
            "miss_rate(0.9)": 0.0}
    for name, index in run_heads:
        layer = trace["layers"][name]
        scale = float(layer.attrs.get("softmax_scale", attributes["softmax_scale"]))
        softcap = float(layer.attrs.get("logit_softcap", attributes.get("logit_softcap", 0.0)))
        window = int(layer.attrs.get("sliding_window", 0))
        start = time.perf_counter()
        tensors = read_head(layer, index, group, steps)
        read += time.perf_counter() - start
        start = time.perf_counter()
        head = Head(*tensors, prompt, steps, scale, softcap, window)
        once.append(time.perf_counter() - start)
        for number, order in enumerate(noisy_rankings(head.oracle, options.rankings)):
            if number == run_rankings:
                break
            if methods is None:
                methods = fastest_methods(head, order, budgets, dtype, options.methods.split(","))
            for budget, method in zip(budgets, methods):
                start = time.perf_counter()
                error, recall, query, same_set, misses = head.point(order, budget, method, dtype)
                points.append(time.perf_counter() - start)
                sums["output_error"] += float(error.mean())
                sums["attention_recall"] += float(recall.mean())
                sums["query_consistency"] += float(query.mean())
                sums["set_consistency"] += float(same_set)
                sums["miss_rate(0.9)"] += float(misses[1].mean())
                if number == 0:
                    dumped.append([int(layer.attrs.get("layer_index", name)), index, budget, float(error.double().mean()),
                                   float(recall.double().mean()), float(query.double().mean()), float(same_set)] +
                                  [float(misses[c].double().mean()) for c in (1, 0, 2)])

    per_head = sum(once) / len(once)
    per_point = sum(points) / len(points)
    print("means over points: " + ", ".join(f"{name} {value / len(points):.4f}" for name, value in sums.items()))
    if dtype != torch.float32:
        full = head.point(torch.arange(prompt), prompt, methods[-1], dtype)[0]
        print(f"half precision alone makes an output error of {float(full.max()):.1e} (full cache)")
    print(f"method per budget: {' '.join(methods)}")
    print(f"reading {read:.3f} s; once per KV head {per_head * 1e3:.1f} ms; per point {per_point * 1e3:.3f} ms")
    total_points = len(heads) * options.rankings * len(budgets)
    if len(points) == total_points:
        print(f"total {sum(once) + sum(points):.2f} s for {options.rankings} rankings x {len(budgets)} budgets, "
              "reading not counted")
    else:
        print(f"EXTRAPOLATED total {per_head * len(heads) + per_point * total_points:.1f} s for {len(heads)} KV heads, "
              f"{options.rankings} rankings x {len(budgets)} budgets, from {len(run_heads)} KV heads and "
              f"{run_rankings} rankings ({len(points)} of {total_points} points run); reading not counted")
    if options.dump:
        with open(options.dump, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["layer", "kv_head", "budget_tokens", *DUMPED])
            writer.writerows(dumped)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"per_head_s": per_head, "per_point_s": per_point, "points_run": len(points), "points": total_points,
                       "methods": methods, "heads_run": len(run_heads), "heads": len(heads), "rankings_run": run_rankings,
                       "total_s": per_head * len(heads) + per_point * total_points, "torch": torch.__version__}, file)


if __name__ == "__main__":
    main()
