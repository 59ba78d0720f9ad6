"""`textenv evaluate FOLDER --dataset FILE`: a reward model, measured on held-out pairs or rated texts."""

from __future__ import annotations

from textenv.agents.checkpointing.needs import WrongKindError
from textenv.agents.cli.errors import UsageError
from textenv.agents.cli.options import EvaluateOptions
from textenv.agents.cli.output import check_there, print_numbers
from textenv.utils.json_files import write_json


def measure_reward_model(source: str, options: EvaluateOptions) -> int:
    """Measure a reward model on pairs or rated texts, and print accuracy, intervals and calibration.

    Raises:
        UsageError: for an option that has no effect there, or a model that is no reward model.
    """
    import rich

    from textenv.agents.evaluation.reward_model_measure import evaluate_reward_model

    default = EvaluateOptions()
    used = ("dataset", "split", "out", "policy")
    for name in options.to_dict():
        if name not in used and getattr(options, name) != getattr(default, name):
            raise UsageError(f"--{name} has no effect with --dataset, on which a reward model is measured")
    check_there(source)
    try:
        found = evaluate_reward_model(
            source, options.dataset, split=options.split, device=options.policy.device
        )
    except WrongKindError as error:
        raise UsageError(
            f"{error}; --dataset measures a reward model. A model that writes texts is measured on --prompts "
            "(with --reward) or --task"
        ) from error
    if found.reliability:
        rich.print(found.table())
    print_numbers(found.metrics, f"evaluation on {options.dataset}")
    if options.out is not None:
        write_json(options.out, found.to_dict())
    return 0
