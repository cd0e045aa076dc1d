"""Philox 4x32-10 (Salmon et al., SC 2011) and the streams of a trace, in whole numbers: what random choices hang on."""

_32, _64 = (1 << 32) - 1, (1 << 64) - 1


def block(seed, stream, counter):
    """The four words with number `counter` of a stream."""
    c = [counter & _32, counter >> 32, stream & _32, stream >> 32]
    k0, k1 = seed & _32, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & _32, (p0 >> 32) ^ c[3] ^ k1, p0 & _32]
        k0, k1 = (k0 + 0x9E3779B9) & _32, (k1 + 0xBB67AE85) & _32
    return c


def fnv1a(text):
    """64 bits that stand for a trace, from the text of its digest."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = ((state ^ byte) * 0x100000001B3) & _64
    return state


def stream_of(*words):
    """One 64-bit stream number of several words: the finaliser of splitmix64, word by word."""
    h = 0x9E3779B97F4A7C15
    for word in words:
        h ^= word & _64
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & _64
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & _64
        h ^= h >> 31
        h = (h + 0x9E3779B97F4A7C15) & _64
    return h
