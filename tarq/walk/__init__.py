"""The walk: stage by stage, block by block, group by group, through the model as it is being quantized."""
