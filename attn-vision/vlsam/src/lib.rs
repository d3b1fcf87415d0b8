//! VL-SAM on wgpu: attention maps of vision-language models as prompts for segmentation.
