"""Which kind of training the launcher's configuration asks for: FSDP2, or a stage of DeepSpeed's ZeRO.

``accelerate launch`` passes its configuration on in environment variables.
"""

from __future__ import annotations

import os
from typing import Any

from textenv.agents.distributed import process_group


def asked_for() -> bool:
    """Whether the launcher's configuration asks for FSDP2.

    Raises:
        ValueError: if it asks for the first FSDP, which is not used here.
    """
    if process_group.world_size() == 1:
        return False
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError(f"fsdp_version must be 2, got {os.environ.get('FSDP_VERSION', '1')}")
    return True


def zero_stage() -> int:
    """ZeRO's stage in the launcher's configuration, 1 to 3; 0 if it does not ask for DeepSpeed.

    Raises:
        ValueError: for another stage, or for offloading, which is not used here.
    """
    if (
        process_group.world_size() == 1
        or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true"
    ):
        return 0
    from accelerate import DeepSpeedPlugin

    plugin: Any = DeepSpeedPlugin()
    settings = plugin.deepspeed_config["zero_optimization"]
    for name in ("offload_optimizer", "offload_param"):
        device = (settings.get(name) or {}).get("device", "none")
        if device != "none":
            raise ValueError(f"{name}_device must be none with DeepSpeed, got {device}")
    stage = int(settings["stage"])
    if stage not in (1, 2, 3):
        raise ValueError(f"zero_stage must be 1, 2 or 3, got {stage}")
    return stage
