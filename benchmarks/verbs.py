"""What adding, loading and merging adapters costs, as shares of the time that the model takes to be built.

    python -m benchmarks.verbs [--rounds 3]

A BERT of the size of BERT-base from KerasHub with random weights, LoRA of rank 8 on all linear layers; the least
processor time of some rounds in one process.
"""

import argparse
import tempfile
import time


def timed(times, name, function):
    """Returns what a function returns, and notes the least processor time that it took."""
    began = time.process_time()
    result = function()
    times[name] = min(times.get(name, float("inf")), time.process_time() - began)
    return result


def build():
    from keras_hub.models import BertBackbone

    sizes = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "intermediate_dim": 3072}
    return BertBackbone(vocabulary_size=30_522, max_sequence_length=512, **sizes)


def measure(rounds):
    """Returns the least seconds of each verb by name."""
    from kopt import peft

    times = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            model = timed(times, "build", build)
            lora = peft.LoRA(r=8, target_modules="all-linear", init_lora_weights=False)
            timed(times, "get_peft_model", lambda m=model, a=lora: peft.get_peft_model(m, a))
            timed(times, "save_pretrained", lambda m=model: peft.save_pretrained(m, folder))
            peft.unload(model)
            timed(times, "load_adapter", lambda m=model: peft.load_adapter(m, folder))
            timed(times, "merge_adapter", lambda m=model: peft.merge_adapter(m))
            timed(times, "unmerge_adapter", lambda m=model: peft.unmerge_adapter(m))
            timed(times, "merge_and_unload", lambda m=model: peft.merge_and_unload(m))
            del model
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often all is done")
    times = measure(parser.parse_args().rounds)
    print("| verb | ms | of building |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| `{name}` | {1000 * seconds:.0f} | {seconds / times['build']:.2f} |")


if __name__ == "__main__":
    main()
