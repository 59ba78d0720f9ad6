"""Comparison studies: agents on the same tasks, seeds and prompts, with statistics for few runs.

``StudyConfig`` says what is compared, ``run_study`` makes the missing runs, and ``write_outputs`` writes
tables, plots and conclusions; ``textenv compare STUDY.yaml`` does all three.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
