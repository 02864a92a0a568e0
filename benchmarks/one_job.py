"""One job in a process of its own, so that its time to start and its memory are its own.

Prints JSON: the seconds to embed, and in MB how much memory there
was in use after loading, and how much more at most while embedding.
"""

from __future__ import annotations

import argparse
import json
import time

import fiftyone as fo
import fiftyone.utils.torch  # imports are not what is measured
import fiftyone.zoo as foz
import torch
import transformers.models.hiera.modeling_hiera  # noqa: F401  # the same

from measure import memory


def main() -> None:
    """Run the job."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("way", choices=["native", "runner"])
    parser.add_argument("options", type=json.loads)
    args = parser.parse_args()

    torch.zeros(2, 3).matmul(torch.zeros(3, 2))
    dataset = fo.load_dataset(args.dataset)
    foz.get_zoo_model("hiera-nano-digits")
    model = foz.load_zoo_model("hiera-nano-digits", **args.options)
    loaded = time.perf_counter()
    before = memory("VmRSS")
    if args.way == "runner":
        model.embed_samples(dataset, "hiera", batch_size=32, overwrite=True)
    elif args.way == "native":
        dataset.compute_embeddings(model, embeddings_field="hiera", batch_size=32)

    result = {
        "embed_seconds": time.perf_counter() - loaded,
        "loaded_mb": before,
        "more_mb": memory("VmHWM") - before,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
