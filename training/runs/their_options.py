"""Lists the options of published training commands that ours lacks, and says of each what to do instead.

Those of CGS-GAN, GSGAN, EG3D and StyleGAN3, and of GGHead. A value that asks for what happens here anyway is taken
without a word; every other one is refused by name.
"""

from __future__ import annotations

_PRESET, _DATA = "the preset has it", "images are rendered at the data's resolution"

REFUSED = {  # name -> what to do instead
    "--cfg": "presets hold what it chooses; --preset=gsgan-ffhq512 is one, and --help lists them",
    "--start-pe": "the encoding of points is the preset's, and says nothing to published CGS-GAN",
    "--g-num-fp16-res": "--precision covers the generator too",
    "--c-scale": "networks are told labels as they are",
    "--c-noise": "the published codes never read it; --disc-c-noise is there",
    "--res-end": "a preset has the levels of its resolution",
    "--neural-rendering-resolution-initial": _DATA,
    "--neural-rendering-resolution-final": _DATA,
    "--neural-rendering-resolution-fade-kimg": _DATA,
    "--snap": "--network-snap and --img-snap are ticks between two checkpoints, and between two pictures",
    "--image-snapshot-ticks": "say --img-snap",
    "--lr-gen": "say --glr",
    "--lr-disc": "say --dlr",
    "--n-phases-gen": "a step has one update of G",
    "--ada-target": "say --target",
    "--resolution": _PRESET + "; --preset=gghead-ffhq512 is one",
    "--sh-degree": "say --set=generator.sh_degree=N",
    "--opacity-overshoot": "opacities reach a thousandth beyond 0 and 1, as published",
    "--clamp-opacity": "opacities are those of the published networks",
    "--use-gsm-flame-template": "say --gghead-template=head, sphere, plane or FILE.obj",
    "--use-sphere-template": "say --gghead-template=sphere",
    "--use-plane-template": "say --gghead-template=plane",
    "--lambda-raw-gaussian-position": "say --lambda-raw-position",
    "--lambda-raw-gaussian-scale": "say --lambda-raw-scale",
    "--lambda-raw-gaussian-rotation": "say --set=objective.rotation_weight=X",
    "--lambda-raw-gaussian-color": "say --set=objective.color_weight=X",
    "--lambda-raw-gaussian-opacity": "say --set=objective.opacity_weight=X",
    "--lambda-raw-scale-std": "say --set=objective.scale_std_weight=X",
    "--lambda-tv-uv-rendering": "say --lambda-tv-uv",
    "--lambda-beta-loss": "say --lambda-beta",
    "--use-l1-scale-reg": "say --set=objective.absolute_scales=True",
    "--tv-uv-include-transparent-gaussians": "say --set=objective.tv_opaque=True",
    "--use-background-cnn": "say --set=generator.background_channels=3",
    "--fix-alpha-blending": "say --set=generator.exact_backdrop=True",
    "--background-color": "say --background=white, black or R,G,B",
    "--random-background": "say --background=random",
    "--resume-run": "--resume takes a run folder",
    "--reset-cur-nimg": "--init-from counts images from 0, --resume goes on",
}  # fmt: skip

SAME = {  # name -> the value that means what happens here
    "--start-pe": "True",
    "--g-num-fp16-res": "0",
    "--c-scale": "1",
    "--c-noise": "0",
    "--n-phases-gen": "1",
    "--opacity-overshoot": "0.001",
    "--clamp-opacity": "False",
    "--use-gsm-flame-template": "True",
    "--use-sphere-template": "False",
    "--use-plane-template": "False",
    "--use-l1-scale-reg": "False",
    "--tv-uv-include-transparent-gaussians": "False",
    "--use-background-cnn": "False",
    "--fix-alpha-blending": "False",
    "--random-background": "False",
    "--reset-cur-nimg": "False",
}
