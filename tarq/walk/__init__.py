"""The walk: stage by stage, block by block, group by group, through a model that becomes quantized."""
