"""Lists the options of published training commands that ours lacks, and says of each what to do instead.

Those of CGS-GAN, GSGAN, EG3D, StyleGAN3 and GGHead. A value that asks for what happens here anyway is taken without a
word; every other one is refused by name.
"""

from __future__ import annotations

_PRESET = "a preset has it; --help lists them, and their values are those of --set"
_SIZE = "images are rendered at the data's resolution"
_SR = "no family has superresolution"
_MASKS = "masks are read where the data have them, and --background says what stands behind"
_ATTRIBUTES = "attributes are those of the published networks"

THEIRS = {  # name -> what to do instead, and the value that means what happens here (None: there is no such value)
    "--cfg": ("presets hold what it chooses; --preset=gsgan-ffhq512 is one, and --help lists them", None),
    "--start-pe": ("the encoding of points is the preset's, and says nothing to published CGS-GAN", "True"),
    "--g-num-fp16-res": ("--precision covers the generator too", "0"),
    "--c-scale": ("networks are told labels as they are", "1"),
    "--c-noise": ("the published codes never read it; --disc-c-noise is there", "0"),
    "--res-end": ("a preset has the levels of its resolution", None),
    "--neural-rendering-resolution": (_SIZE, None),
    "--neural-rendering-resolution-initial": (_SIZE, None),
    "--neural-rendering-resolution-final": (_SIZE, None),
    "--neural-rendering-resolution-fade-kimg": (_SIZE, None),
    "--snap": ("--network-snap and --img-snap are ticks between two checkpoints, and between two pictures", None),
    "--fp32": ("say --precision=fp32", "False"),
    # EG3D
    "--sr-module": (_SR, None),
    "--sr-noise-mode": (_SR, None),
    "--sr-num-fp16-res": (_SR, None),
    "--sr-first-cutoff": (_SR, None),
    "--sr-first-stopband": (_SR, None),
    "--density-reg": ("no family has this term", "0"),
    "--density-reg-every": ("no family has this term", None),
    "--density-reg-p-dist": ("no family has this term", None),
    "--reg-type": ("no family has this term", None),
    "--decoder-lr-mul": ("all of a network has --glr", "1"),
    # GGHead
    "--name": ("say --desc", None),
    "--resume-run": ("--resume takes a run folder", None),
    "--resume-checkpoint": ("--resume takes a checkpoint, or a run folder, whose newest it is", "-1"),
    "--reset-cur-nimg": ("--init-from counts images from 0, --resume goes on", "False"),
    "--image-snapshot-ticks": ("say --img-snap", None),
    "--use-vis-window": ("view.py --network=RUN shows what a run has learnt", "False"),
    "--generator-type": ("--preset=gghead-... has Gaussians, --preset=eg3d-field128 tri-planes", "gaussians"),
    "--resolution": (_PRESET, None),
    "--sh-degree": ("say --set=generator.sh_degree=N", None),
    "--uv-attributes": (_ATTRIBUTES, "position,scale,rotation,color,opacity"),
    "--opacity-overshoot": (_ATTRIBUTES, "0.001"),
    "--clamp-opacity": (_ATTRIBUTES, "False"),
    "--disable-position-offsets": (_ATTRIBUTES, "False"),
    "--use-rodriguez": (_ATTRIBUTES, "True"),
    "--use-position-activation": (_ATTRIBUTES, "True"),
    "--use-rotation-activation": (_ATTRIBUTES, "True"),
    "--use-zero-conv-position": (_ATTRIBUTES, "True"),
    "--use-align-corners": (_ATTRIBUTES, "False"),
    "--use-gsm-flame-template": ("say --gghead-template=head, sphere, plane or FILE.obj", "True"),
    "--use-flame-template-v2": ("say --gghead-template=head, sphere, plane or FILE.obj", "False"),
    "--use-sphere-template": ("say --gghead-template=sphere", "False"),
    "--use-plane-template": ("say --gghead-template=plane", "False"),
    "--use-masks": (_MASKS, "True"),
    "--apply-masks": (_MASKS, "True"),
    "--return-masks": (_MASKS, "False"),
    "--mask-method": (_MASKS, None),
    "--blur-masks": (_MASKS, None),
    "--random-background": ("say --background=random", "False"),
    "--return-background": (_MASKS, "False"),
    "--background-color": ("say --background=white, black or R,G,B", None),
    "--use-background-cnn": ("say --set=generator.background_channels=3", "False"),
    "--use-background-upsampler": ("no family has it", "False"),
    "--n-background-channels": ("say --set=generator.background_channels=3", None),
    "--fix-alpha-blending": ("say --set=generator.exact_backdrop=True", "False"),
    "--lr-gen": ("say --glr", None),
    "--lr-disc": ("say --dlr", None),
    "--n-phases-gen": ("a step has one update of G", "1"),
    "--ada-target": ("say --target", None),
    "--lambda-raw-gaussian-position": ("say --lambda-raw-position", None),
    "--lambda-raw-gaussian-scale": ("say --lambda-raw-scale", None),
    "--lambda-raw-gaussian-rotation": ("say --set=objective.rotation_weight=X", None),
    "--lambda-raw-gaussian-color": ("say --set=objective.color_weight=X", None),
    "--lambda-raw-gaussian-opacity": ("say --set=objective.opacity_weight=X", None),
    "--lambda-raw-scale-std": ("say --set=objective.scale_std_weight=X", None),
    "--lambda-tv-uv-rendering": ("say --lambda-tv-uv", None),
    "--lambda-beta-loss": ("say --lambda-beta", None),
    "--use-l1-scale-reg": ("say --set=objective.absolute_scales=True", "False"),
    "--tv-uv-include-transparent-gaussians": ("say --set=objective.tv_opaque=True", "False"),
}

# GGHead's options of a run that goes on, each the twin of another.
_OVERWRITTEN = (
    "resolution", "plane-resolution", "n-uniform-flame-vertices", "new-layers-gen-blend-kimg", "interpolation-mode",
    "align-corners", "lambda-raw-gaussian-position", "lambda-raw-gaussian-scale", "lambda-raw-gaussian-rotation",
    "lambda-raw-gaussian-color", "lambda-raw-gaussian-opacity", "lambda-raw-scale-std", "lambda-tv-uv-rendering",
    "lambda-beta-loss", "use-l1-scale-reg", "tv-uv-include-transparent-gaussians", "use-masks", "apply-masks",
    "return-masks", "mask-method", "blur-masks", "random-background", "return-background", "background-color",
    "use-background-cnn", "n-background-channels", "fix-alpha-blending",
)  # fmt: skip
_GROWS = (
    "a preset of several sizes grows by itself, and any other option, or --set, beats the value of a run that goes on"
)
THEIRS |= {f"--overwrite-{name}": (_GROWS, None) for name in _OVERWRITTEN}
THEIRS |= {
    "--smooth-D-intro": ("a preset of several sizes fades in what D gains", "True"),
    "--smooth-G-intro": ("G has all of its layers from the start", "True"),
    "--smooth-res-intro": (_GROWS, "False"),
}
