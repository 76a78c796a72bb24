"""OpenVINO on the processor, in float32 or, where that was chosen, in bfloat16."""
