"""Small real recordings for the replay: parts of tests/data/smollm2-harbour.h5, which holds the last 64 prompt queries only."""

import h5py
import numpy as np

SOURCE_QUERIES = 64


def tail(source, target, layers, prompt=SOURCE_QUERIES, steps=None, seed=1):
    """The last tokens of the recording as a text of its own, with every query: keys and queries keep their rotation, which
    only differences of positions matter to. Adds seeded log-retention and final hidden states that follow the token ids."""
    with h5py.File(source, "r") as file, h5py.File(target, "w") as out:
        first = int(file["layers"][f"{layers[0]:03d}"]["query_position"][0])
        total = int(file.attrs["prompt_len"]) + int(file.attrs["decode_len"])
        end = total if steps is None else first + prompt + steps
        count = end - first
        for name, value in file.attrs.items():
            if name != "digest":
                out.attrs[name] = value
        out.attrs["prompt_len"], out.attrs["decode_len"] = np.int64(prompt), np.int64(count - prompt)
        out.attrs["digest"] = "kvd1:0123456789abcdef"  # random choices hang on it; nothing verifies it here
        file.copy("rope", out)
        texts, ids = file["tokens/text"][first:end], file["tokens/id"][first:end]
        out.create_dataset("tokens/text", data=texts, dtype=h5py.string_dtype())
        out["tokens/id"] = ids
        random = np.random.default_rng(seed)
        kv_heads = int(file.attrs["num_kv_heads"])
        for layer in layers:
            at, group = file[f"layers/{layer:03d}"], out.create_group(f"layers/{layer:03d}")
            for name, value in at.attrs.items():
                group.attrs[name] = value
            for name in ("key", "value"):
                copy_rows(at[name], group, name, first, end)
            copy_rows(at["query"], group, "query", 0, count)
            group["query_position"] = np.arange(count, dtype=np.int32)
            group["retention"] = -np.exp(random.normal(-4.0, 1.5, size=(kv_heads, count))).astype(np.float32)
        out["final_hidden"] = hidden_of(ids, seed)
    return target


def with_extras(source, target, seed=1):
    """A trace (not digested anew) with seeded retention and final hidden states added."""
    with h5py.File(source, "r") as file, h5py.File(target, "w") as out:
        for name in file:
            if name not in ("lookahead",):
                file.copy(name, out)
        for name, value in file.attrs.items():
            out.attrs[name] = value
        random = np.random.default_rng(seed)
        for layer in out["layers"].values():
            layer["retention"] = -np.exp(random.normal(-4.0, 1.5, size=layer["key"].shape[:2])).astype(np.float32)
        out["final_hidden"] = hidden_of(file["tokens/id"][:], seed)
    return target


def hidden_of(ids, seed, width=16):
    """A direction per token id, with a little noise: sentences of the same words are alike, others are not."""
    table = np.random.default_rng(seed + 1).normal(size=(int(ids.max()) + 1, width))
    noise = np.random.default_rng(seed + 2).normal(size=(len(ids), width))
    return (table[ids] + 0.2 * noise + 0.5).astype(np.float32)


def copy_rows(dataset, group, name, begin, end):
    """Tokens [begin, end) of [heads, tokens, channels], element type and bits as they are."""
    kind = dataset.id.get_type()
    heads, _, width = dataset.shape
    raw = np.empty((heads, end - begin, width), dtype={2: np.uint16, 4: np.uint32}[kind.get_size()])
    space = dataset.id.get_space()
    space.select_hyperslab((0, begin, 0), raw.shape)
    dataset.id.read(h5py.h5s.create_simple(raw.shape), space, raw, kind)
    made = h5py.h5d.create(group.id, name.encode(), kind, h5py.h5s.create_simple(raw.shape))
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, raw, kind)
