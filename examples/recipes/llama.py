"""LLaMA on text: torchrun --nproc-per-node 8 llama.py DATA RUN --tokenizer tokenizer.json [--model 134m]

DATA is a folder of *.parquet or *.jsonl files, or a data set that is streamed from the Hugging Face Hub:

    llama.py hf:HuggingFaceFW/fineweb RUN --config sample-100BT --tokenizer tokenizer.json

Documents are joined and cut into sequences; the first ones are held out. A second call with the same RUN goes on where
the first one stopped, with the tokens that it would have seen; with files also with another number of workers. At the
end RUN/model has the full model, for `from_pretrained`.

The numbers of parameters are those of the SDP paper's models. Layers, widths and hyperparameters are not taken from it:
the former are those of `sdp-compile bench`, the latter are usual for models of these sizes. The learning rate rises,
stays and falls as the schedule says.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from documents import Batches, Files, Hub, Source, encoder, packed
from torch import Tensor, nn
from training import Run, Worker, decayed, parser, set_rate, start
from transformers import LlamaConfig, LlamaForCausalLM

import sdp_compile as sdp

# Layers, width, heads, width of the feed-forward layer, highest learning rate; parameters with 32,000 tokens.
SIZES = {
    "134m": (12, 768, 12, 2048, 6e-4),
    "500m": (21, 1280, 20, 3456, 4e-4),
    "1b": (18, 2048, 16, 5504, 3e-4),
    "tiny": (2, 32, 4, 64, 3e-3),  # to try it out
}


def build(size: str, tokens: int, end: int, length: int) -> nn.Module:
    layers, width, heads, inner, _ = SIZES[size]
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=length,
            bos_token_id=end,
            eos_token_id=end,
            use_cache=False,
        )
    )


def source_of(options: Any, worker: Worker) -> Source:
    if options.data.startswith("hf:"):
        name = options.data.removeprefix("hf:")
        return Hub(name, options.config, options.split, options.column, options.held_out, worker)
    return Files(Path(options.data), options.column, options.held_out, worker)


def loss_of(model: nn.Module, tokens: Tensor, worker: Worker) -> Tensor:
    """Returns the mean over all tokens but the first of each sequence."""
    with worker.autocast():
        logits = model(input_ids=tokens[:, :-1]).logits
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(full: nn.Module, sequences: Sequence[Tensor], worker: Worker, micro: int) -> float:
    """Returns the loss of all sequences, of which each worker evaluates a part. Collective."""
    own, total = list(sequences[worker.rank :: worker.workers]), 0.0
    for first in range(0, len(own), micro):
        some = torch.stack(own[first : first + micro]).to(worker.device)
        total += loss_of(full, some, worker).item() * len(some)
    return worker.total(total)[0] / len(sequences)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    arguments.add_argument("--model", default="134m", choices=SIZES)
    arguments.add_argument("--steps", type=int, default=20_000)
    arguments.add_argument("--length", type=int, default=1024, help="Tokens of a sequence")
    arguments.add_argument("--micro", type=int, default=16, help="Sequences that a worker computes at once")
    arguments.add_argument("--every", type=int, default=1000, help="Steps from validation and checkpoint to the next")
    arguments.add_argument("--log-every", type=int, default=10)
    arguments.add_argument("--held-out", type=int, default=1000, help="Documents for validation")
    arguments.add_argument("--column", default="text")
    arguments.add_argument("--end-token", default="</s>", help="Ends a document")
    arguments.add_argument("--config", help="Configuration of a data set of the Hub")
    arguments.add_argument("--split", default="train", help="Split of a data set of the Hub")
    arguments.set_defaults(batch=256)
    options = arguments.parse_args()

    worker = start()
    share, rate = worker.share(options.batch), options.rate or SIZES[options.model][-1]
    encode, tokens, end = encoder(options.tokenizer, options.end_token)
    source = source_of(options, worker)
    held_out = packed((({}, text) for text in source.held_out()), encode, options.length + 1)
    validation = [sequence for sequence, _ in held_out]
    if not validation:
        raise SystemExit(f"--held-out {options.held_out} documents are less than a sequence: hold out more.")
    run = Run(options.run, options.logger, worker)

    schedule = sdp.resolve_schedule(options.schedule, steps=options.steps)
    torch.manual_seed(0)
    original = build(options.model, tokens, end, options.length).to(worker.device)
    inputs = {"input_ids": torch.zeros(2, options.length, dtype=torch.int64, device=worker.device)}
    model = sdp.compile(original, schedule, inputs)
    optimizer = torch.optim.AdamW(decayed(model, 0.1), lr=rate, betas=(0.9, 0.95))
    restored, done, position = run.restore(model, optimizer), 0, {}
    if restored:
        done, positions = restored.step, restored.extra["positions"]
        position = positions[worker.rank] if restored.same_workers else source.shared(positions)

    batches = Batches(source, encode, options.length + 1, share, position)
    logged, began = done, time.monotonic()
    for step in range(done, options.steps):
        model.advance(step, optimizer)
        set_rate(optimizer, rate * schedule.rate(step))
        optimizer.zero_grad()
        batch, loss = next(batches).to(worker.device), torch.zeros((), device=worker.device)
        for some in (micros := batch.split(options.micro)):
            with nullcontext() if some is micros[-1] else model.no_sync():
                part = loss_of(model, some, worker) * (len(some) / share)
                part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        is_last = step + 1 == options.steps
        if (step + 1) % options.log_every == 0 or is_last:
            speed = (step + 1 - logged) * options.batch * options.length / (time.monotonic() - began)
            mean = worker.total(loss.item())[0] / worker.workers
            run.log(step + 1, {"loss": mean, "rate": rate * schedule.rate(step), "tokens_per_second": speed})
            logged, began = step + 1, time.monotonic()
        if (step + 1) % options.every == 0 or is_last:
            full = model.full_model().eval()
            figure = evaluate(full, validation, worker, options.micro)
            run.log(step + 1, {"validation": figure})
            run.say(f"step {step + 1}: validation loss of the full model {figure:.4f}")
            if is_last and worker.rank == 0:
                full.save_pretrained(run.folder / "model")
            positions = [{}] * worker.workers
            dist.all_gather_object(positions, batches.position)
            extra = {"positions": positions}
            run.save(model, optimizer, step + 1, samples=(step + 1) * options.batch, extra=extra)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
