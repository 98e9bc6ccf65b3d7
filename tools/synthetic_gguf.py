#!/usr/bin/env python3
"""Writes the model synthetic:SHAPE:TYPE as a GGUF file, so that other engines can be measured on the same shape.

    python3 tools/synthetic_gguf.py 1.1b:q4_k_m OUT.gguf

Shapes, types and the choice of tensors that the usual mix keeps finer are those of src/model/synthetic.c. Weights are a
pool of random blocks, repeated: enough for speed, which does not depend on values that are finite.
"""
import math
import os
import struct
import sys

# layers, width, ffn, heads, kv heads, head size, vocabulary
SHAPES = {
    '8b': (32, 4096, 14336, 32, 8, 128, 128256),
    '4b': (36, 2560, 9728, 32, 8, 128, 151936),
    '1.1b': (22, 2048, 5632, 32, 4, 64, 32000),
    '0.6b': (24, 896, 4864, 14, 2, 64, 151936),
}
MIXES = {'f16': ('f16', 'f16'), 'bf16': ('bf16', 'bf16'), 'q8_0': ('q8_0', 'q8_0'), 'q4_0': ('q4_0', 'q4_0'),
         'q4_k': ('q4_k', 'q4_k'), 'q4_k_m': ('q4_k', 'q6_k')}

# GGUF's number of the type, elements and bytes of a block, where its f16 scales are, deviation at scale 1.
TYPES = {'f32': (0, 1, 4, (), 1), 'f16': (1, 1, 2, (), 1), 'bf16': (30, 1, 2, (), 1), 'q8_0': (8, 32, 34, (0,), 73.9),
         'q4_0': (2, 32, 18, (0,), 4.61), 'q5_0': (6, 32, 22, (0,), 9.23), 'q4_k': (12, 256, 144, (0, 2), 258),
         'q6_k': (14, 256, 210, (208,), 1366)}
FALLBACK = {'q4_k': 'q5_0', 'q6_k': 'q8_0'}  # of rows that blocks do not divide
FILE_TYPE = {'f16': 1, 'bf16': 32, 'q8_0': 7, 'q4_0': 2, 'q4_k': 14, 'q4_k_m': 15}
ALIGNMENT = 32
POOL_BLOCKS = 1 << 15


def is_better_layer(layer, n_layers):
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def tensors(shape, mix):
    """Name, columns, rows, type."""
    layers, width, ffn, heads, kv_heads, head_dim, vocab = shape
    base, better = mix

    def matrix(name, cols, rows, kind=base):
        return name, cols, rows, FALLBACK[kind] if cols % TYPES[kind][1] else kind

    yield matrix('token_embd.weight', width, vocab)
    for i in range(layers):
        finer = better if is_better_layer(i, layers) else base
        yield f'blk.{i}.attn_norm.weight', width, 1, 'f32'
        yield matrix(f'blk.{i}.attn_q.weight', width, heads * head_dim)
        yield matrix(f'blk.{i}.attn_k.weight', width, kv_heads * head_dim)
        yield matrix(f'blk.{i}.attn_v.weight', width, kv_heads * head_dim, finer)
        yield matrix(f'blk.{i}.attn_output.weight', heads * head_dim, width)
        yield f'blk.{i}.ffn_norm.weight', width, 1, 'f32'
        yield matrix(f'blk.{i}.ffn_gate.weight', width, ffn)
        yield matrix(f'blk.{i}.ffn_up.weight', width, ffn)
        yield matrix(f'blk.{i}.ffn_down.weight', ffn, width, finer)
    yield 'output_norm.weight', width, 1, 'f32'
    yield matrix('output.weight', width, vocab, better)


def string(text):
    return struct.pack('<Q', len(text)) + text.encode()


def metadata(shape, kind):
    layers, width, ffn, heads, kv_heads, head_dim, vocab = shape
    u32 = {'llama.block_count': layers, 'llama.embedding_length': width, 'llama.feed_forward_length': ffn,
           'llama.attention.head_count': heads, 'llama.attention.head_count_kv': kv_heads,
           'llama.attention.key_length': head_dim, 'llama.attention.value_length': head_dim,
           'llama.rope.dimension_count': head_dim, 'llama.vocab_size': vocab, 'llama.context_length': 131072,
           'general.file_type': FILE_TYPE[kind], 'general.alignment': ALIGNMENT}
    text = {'general.architecture': 'llama', 'general.name': f'synthetic {kind}', 'tokenizer.ggml.model': 'no_vocab'}
    items = [string(k) + struct.pack('<I', 8) + string(v) for k, v in text.items()]
    items += [string(k) + struct.pack('<II', 4, v) for k, v in u32.items()]
    items.append(string('llama.attention.layer_norm_rms_epsilon') + struct.pack('<If', 6, 1e-5))
    return items


def pool(kind, cols):
    """Random blocks of a type whose elements have a deviation of 1 / sqrt(cols)."""
    _, _, block_bytes, scales_at, deviation = TYPES[kind]
    data = bytearray(os.urandom(block_bytes * POOL_BLOCKS))
    scale = 1 / math.sqrt(cols) / deviation
    if kind == 'f32':
        return struct.pack('<f', 1) * POOL_BLOCKS
    if not scales_at:  # keeps sign and mantissa, one exponent
        exponent = math.floor(math.log2(scale))
        top = (15 + exponent) << 2 if kind == 'f16' else (127 + exponent) >> 1
        for i in range(1, len(data), 2):
            data[i] = data[i] & (0x83 if kind == 'f16' else 0x80) | top
        return bytes(data)
    for at in range(0, len(data), block_bytes):
        for i, where in enumerate(scales_at):
            struct.pack_into('<e', data, at + where, scale * (7.5 if i else 1))
    return bytes(data)


def write(path, shape, kind):
    listed = list(tensors(shape, MIXES[kind]))
    items = metadata(shape, kind)
    head = struct.pack('<IIQQ', 0x46554747, 3, len(listed), len(items)) + b''.join(items)
    offset, pools = 0, {}
    for name, cols, rows, dtype in listed:
        number, elements, block_bytes = TYPES[dtype][:3]
        dims = (cols,) if name.endswith('norm.weight') else (cols, rows)
        head += string(name) + struct.pack(f'<I{len(dims)}QIQ', len(dims), *dims, number, offset)
        offset += -(-cols * rows // elements * block_bytes // ALIGNMENT) * ALIGNMENT
    with open(path, 'wb') as out:
        out.write(head + bytes(-len(head) % ALIGNMENT))
        for _, cols, rows, dtype in listed:
            if (dtype, cols) not in pools:
                pools[dtype, cols] = pool(dtype, cols)
            data = pools[dtype, cols]
            left = cols * rows // TYPES[dtype][1] * TYPES[dtype][2]
            padding = -left % ALIGNMENT
            while left:
                left -= out.write(data[:left])
            out.write(bytes(padding))


def main():
    if len(sys.argv) != 3 or ':' not in sys.argv[1]:
        sys.exit(__doc__)
    shape, kind = sys.argv[1].split(':')
    if shape not in SHAPES or kind not in MIXES:
        sys.exit(f'shapes: {", ".join(SHAPES)}; types: {", ".join(MIXES)}')
    write(sys.argv[2], SHAPES[shape], kind)


if __name__ == '__main__':
    main()
