# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
"""Blocks, training steps and decoding of the official packages, under the names of our benchmarks.

The models are theirs: mamba_ssm's MambaLMHeadModel; a differential one has the official DiffMamba2 block as its mixers.
"""
import gc
import statistics
import sys
import time

import torch
from packages import BF16, eager_and_graphed, median_ms, record
from torch import nn
from torch.nn import functional as F

DEVICE = "cuda"


def differential_mixer(d_model, layer, d_state):
    from src.models.sequence.modules.diffmamba2block import DiffMamba2

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = DiffMamba2(d_model, i_layer=layer + 1, l_max=None, final_act=None, dropout=0.0, lr=None, n_ssm=1,
                                    transposed=False, d_state=d_state, expand=1, headdim=64, device=DEVICE).to(DEVICE)

        def forward(self, x, inference_params=None, **_):
            return self.block(x)[0]

    return Mixer()


def blocks(table, found):
    if not {"conv", "scan", "differential"} <= found:
        print("blocks: need both extensions and Diff-Mamba", file=sys.stderr)
        return
    from mamba_ssm.modules.mamba2 import Mamba2
    from mamba_ssm.modules.mamba_simple import Mamba

    kinds = {"mamba2 N128": lambda: Mamba2(1024, d_state=128, expand=2, headdim=64, layer_idx=0),
             "diff_mamba2 N64": lambda: differential_mixer(1024, 3, 64),
             "diff_mamba2 N128": lambda: differential_mixer(1024, 3, 128),
             "mamba N16": lambda: Mamba(1024, d_state=16, expand=2, layer_idx=0)}
    for batch, length in ((8, 2048), (50, 512)):
        for kind, make in kinds.items():
            if not table.wants("blocks", f"{kind} {batch} x {length}"):
                continue
            module = make().to(DEVICE)
            x = torch.randn(batch, length, 1024, device=DEVICE, dtype=BF16).requires_grad_()
            dout, inputs = torch.randn_like(x), [x, *module.parameters()]

            def forward():
                with torch.autocast("cuda", dtype=BF16):
                    return module(x)

            def inference():
                with torch.no_grad():
                    forward()

            def both():
                y = forward()
                torch.autograd.grad(y, inputs, dout.to(y.dtype), allow_unused=True)

            for work, name in ((inference, "forward"), (both, "forward + backward")):
                eager, graphed = eager_and_graphed(work)
                table.line("blocks", f"{kind} {batch} x {length} {name}", eager, graphed)
            del module
            gc.collect()
            torch.cuda.empty_cache()


def language_model(layers, vocab_size, layer, d_state, differential, dtype):
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    options = {"layer": layer} if layer == "Mamba1" else {"layer": layer, "d_state": d_state, "headdim": 64}
    model = MambaLMHeadModel(MambaConfig(d_model=1024, n_layer=layers, vocab_size=vocab_size, ssm_cfg=options,
                                         pad_vocab_size_multiple=16), device=DEVICE, dtype=dtype)
    for index, block in enumerate(model.backbone.layers):
        if differential(index):
            block.mixer = differential_mixer(1024, index, d_state)
    return model


CASES = (  # the names of bench/cuda/support/models.hpp
    ("12 layers Diff-Mamba-2 N 64, bytes", 12, 256, "Mamba2", 64, lambda i: True, 50, 512),
    ("12 layers Mamba-2 N 64, bytes", 12, 256, "Mamba2", 64, lambda i: False, 50, 512),
    ("Mamba-2 370M", 48, 50288, "Mamba2", 128, lambda i: False, 8, 2048),
    ("Diff-Mamba-2 N 128 370M", 48, 50288, "Mamba2", 128, lambda i: True, 8, 2048),
    ("alternating 370M", 48, 50288, "Mamba2", 128, lambda i: i % 2 == 1, 8, 2048),
    ("Mamba-1 370M", 48, 50288, "Mamba1", 16, lambda i: False, 8, 2048),
)


def training_step(table, found):
    if not {"conv", "scan", "differential"} <= found:
        print("training_step: needs both extensions and Diff-Mamba", file=sys.stderr)
        return
    for name, layers, vocab_size, layer, d_state, differential, batch, length in CASES:
        if not table.wants("training_step", name):
            continue
        model = language_model(layers, vocab_size, layer, d_state, differential, torch.float32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True, capturable=True)
        tokens = torch.randint(0, vocab_size, (batch, length + 1), device=DEVICE)

        def step():
            with torch.autocast("cuda", dtype=BF16):
                logits = model(tokens[:, :-1]).logits
                loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for _ in range(3):
            step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            step()
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - begin))
        peak = torch.cuda.max_memory_allocated() / 2**30
        try:
            graph = record(step)
            graphed = median_ms(graph.replay, budget=0.5)
        except Exception as error:
            print(f"{name}: no graph: {error}", file=sys.stderr)
            graph = graphed = None
        del graph, optimizer, model
        gc.collect()
        torch.cuda.empty_cache()
        table.line("training_step", name, statistics.median(times), graphed, ("--steps", "5", "--filter", name),
                   f" [peer's peak {peak:.1f} GiB]")


def decoding(table, found):
    if not {"conv", "scan"} <= found:
        print("decoding: needs both extensions", file=sys.stderr)
        return
    for name, layers, vocab_size, layer, d_state, differential, _, _ in CASES:
        # The repository of the official differential block has no decoding.
        if differential(1) or layers != 48 or not table.wants("decoding", name):
            continue
        model = language_model(layers, vocab_size, layer, d_state, differential, BF16).eval()
        for batch in (1, 64, 128):
            prompt = torch.randint(1, 1000, (batch, 100), device=DEVICE)
            model._decoding_cache = None
            model.generate(input_ids=prompt, max_length=104, cg=True, top_k=1)
            cache = model._decoding_cache
            token, position = prompt[:, :1].contiguous(), torch.full((batch, 1), 102, dtype=torch.long, device=DEVICE)
            with torch.inference_mode():
                for _ in range(3):
                    cache.run(token, position, 102)
                graphed = median_ms(lambda: cache.run(token, position, 102), budget=0.1)
            table.line("decoding", f"{name}, batch {batch}", None, graphed, ("--filter", name))
        model._decoding_cache = cache = None
        del model
        gc.collect()
        torch.cuda.empty_cache()
