"""Wrong inputs in FleetX's names and, word for word, what the user reads (as `wrong_inputs`)."""

# ruff: noqa: E501 (the texts stand as they are printed)
# fmt: off
WRONG_DIALECTS: dict[str, tuple[str, tuple[str, ...], list[str]]] = {
    "misspelt key of ppfleetx": (
        "Optimizer:\n  betta1: 0.9\n",
        (),
        [
            "bad.yaml:2  unknown key 'Optimizer.betta1'. Did you mean 'Optimizer.beta1'?",
        ],
    ),
    "misspelt key of a sampler": (
        "Data:\n  Train:\n    sampler:\n      shufle: True\n",
        (),
        [
            "bad.yaml:4  unknown key 'Data.Train.sampler.shufle'. Did you mean 'Data.Train.sampler.shuffle'?",
        ],
    ),
    "misspelt part of the data": (
        "Data:\n  Trian:\n    dataset:\n      input_dir: ./data\n",
        (),
        [
            "bad.yaml:2  unknown key 'Data.Trian'. Did you mean 'Data.Train'?",
        ],
    ),
    "misspelt key of the model": (
        "Model:\n  fuse_attn_qvk: True\n",
        (),
        [
            "bad.yaml:2  unknown key 'Model.fuse_attn_qvk'. Did you mean 'Model.fuse_attn_qkv'?",
        ],
    ),
    "misspelt key of the engine under Global": (
        "Global:\n  mix_precision:\n    enabel: True\n",
        (),
        [
            "bad.yaml:3  unknown key 'Global.mix_precision.enabel'. Did you mean 'Global.mix_precision.enable'?",
        ],
    ),
    "misspelt section of ppfleetx": (
        "Compres:\n  Prune:\n    enable: False\n",
        (),
        [
            "bad.yaml:1  unknown section 'Compres'. Did you mean 'Compress'?",
        ],
    ),
    "misspelt key of the clip": (
        "Optimizer:\n  grad_clip:\n    clipnorm: 1.0\n",
        (),
        [
            "bad.yaml:3  unknown key 'Optimizer.grad_clip.clipnorm'. Did you mean 'Optimizer.grad_clip.clip_norm'?",
        ],
    ),
    "misspelt key of a flat file": (
        "max_steps: 5\nhidden_size: 64\nnum_layers: 2\nmx_lr: 1\n",
        (),
        [
            "bad.yaml:4  unknown key 'mx_lr'. Did you mean 'Optimizer.lr.max_lr'?",
        ],
    ),
    "misspelt overrides of ppfleetx": (
        "",
        ("Data.Train.sampler.shufle=1", "Global.mix_precision.enabel=1",),
        [
            "-o Data.Train.sampler.shufle=1  unknown key 'Data.Train.sampler.shufle'. Did you mean 'Data.Train.sampler.shuffle'?",
            "-o Global.mix_precision.enabel=1  unknown key 'Global.mix_precision.enabel'. Did you mean 'Global.mix_precision.enable'?",
        ],
    ),
    "value for a block of ppfleetx": (
        "Data:\n  Train: ./data\n",
        (),
        [
            "bad.yaml:2  'Data.Train' must be a block of keys, not a value",
        ],
    ),
    "wrong type under their name": (
        "Global:\n  local_batch_size: eight\nOptimizer:\n  beta1: 1.5\n",
        (),
        [
            "bad.yaml:2  'Global.local_batch_size' must be an integer of at least 1, not 'eight' (str)",
            "bad.yaml:4  'Optimizer.beta1' must be a number of at least 0 and below 1, not 1.5 (float)",
        ],
    ),
    "other optimizers": (
        "Optimizer:\n  name: Momentum\n",
        (),
        [
            "bad.yaml:2  Optimizer.name Momentum: the optimizer here is AdamW. Type -o Optimizer.name=AdamW",
        ],
    ),
    "coupled weight decay": (
        "Optimizer:\n  name: Adam\n",
        (),
        [
            "bad.yaml:2  Optimizer.name Adam: weight decay is decoupled here. Type -o Optimizer.name=AdamW, and -o Optimizer.weight_decay=0 for the same mathematics as Adam without decay",
        ],
    ),
    "schedule of steps": (
        "Optimizer:\n  lr:\n    name: MultiStepDecay\n",
        (),
        [
            "bad.yaml:3  Optimizer.lr.name MultiStepDecay: schedules here are cosine, linear and constant. Type -o Optimizer.lr.name=cosine, and set max_lr, min_lr, decay_steps and warmup_rate",
        ],
    ),
    "schedule of a vision model": (
        "Optimizer:\n  lr:\n    name: ViTLRScheduler\n",
        (),
        [
            "bad.yaml:3  Optimizer.lr.name ViTLRScheduler: schedules here are cosine, linear and constant. Type -o Optimizer.lr.name=cosine, and set max_lr, min_lr, decay_steps and warmup_rate",
        ],
    ),
    "line behind a warm-up": (
        "Optimizer:\n  lr:\n    name: LinearDecayWithWarmup\n    warmup: 0.1\n    learning_rate: 3.0e-5\n",
        (),
        [
            "bad.yaml:3  Optimizer.lr.name LinearDecayWithWarmup jumps at the end of its warm-up to the line from learning_rate at step 0 to 0, and here a line starts at max_lr. Type -o Optimizer.lr.name=linear -o Optimizer.lr.min_lr=0 for that",
        ],
    ),
    "clip of experts": (
        "Optimizer:\n  grad_clip:\n    name: ClipGradForMOEByGlobalNorm\n    clip_norm: 1.0\n",
        (),
        [
            "bad.yaml:3  Optimizer.grad_clip.name ClipGradForMOEByGlobalNorm: the clip here is by global norm. Type -o Optimizer.grad_clip.name=ClipGradByGlobalNorm",
        ],
    ),
    "experts": (
        "Model:\n  module: MoEModule\n  name: MoE\n  num_experts: [8]\n",
        (),
        [
            "bad.yaml:2  Model.module MoEModule has experts, and this is not in this version. For the plain language model type -o Model.module=GPTModule",
            "bad.yaml:3  Model.name MoE: experts are not in this version. For a plain GPT type -o Model.name=GPT",
            "bad.yaml:4  Model.num_experts [8]: experts are not in this version. Type -o Model.num_experts=1",
        ],
    ),
    "classifier": (
        "Model:\n  module: GPTFinetuneModule\n  pretrained: ./gpt/model\nData:\n  Train:\n    dataset:\n      name: SST2\n",
        (),
        [
            "bad.yaml:2  Model.module GPTFinetuneModule trains a classifier, and this is not in this version. For the plain language model type -o Model.module=GPTModule",
            "bad.yaml:3  Model.pretrained ./gpt/model: convert these weights first, `fastffn convert ./gpt/model.pdparams -c FILE`, and start from them with `fastffn posttrain --from DIR`; type -o Model.pretrained= for both",
            "bad.yaml:7  Data.Train.dataset.name SST2: a GPT is trained on token files here (`fastffn prepare` writes them). Name their folder as input_dir, and write name: GPTDataset",
        ],
    ),
    "vision model": (
        "Model:\n  module: GeneralClsModule\n  name: ViT\n",
        (),
        [
            "bad.yaml:2  Model.module GeneralClsModule is no language model of the GPT kind, and this is not in this version. For the plain language model type -o Model.module=GPTModule",
            "bad.yaml:3  Model.name ViT: models here are GPTs. For a plain GPT type -o Model.name=GPT",
        ],
    ),
    "compression": (
        "Compress:\n  Quantization:\n    enable: True\n  Prune:\n    enable: True\n  Distillation:\n    enable: True\n",
        (),
        [
            "bad.yaml:3  Compress.Quantization.enable is true, and this is not in this version: set it to false",
            "bad.yaml:5  Compress.Prune.enable is true, and this is not in this version: set it to false",
            "bad.yaml:7  Compress.Distillation.enable is true, and this is not in this version: set it to false",
        ],
    ),
    "quantisation of August 2022": (
        "Quantization:\n  enable: True\n",
        (),
        [
            "bad.yaml:2  Quantization.enable is true, and this is not in this version: set it to false",
        ],
    ),
    "quantisation of August 2022 without a switch": (
        "Quantization:\n  weight_bits: 8\n",
        (),
        [
            "bad.yaml:2  section 'Quantization' without enable is quantised training at FleetX, which is not in this version: remove the section, or type -o Quantization.enable=false",
        ],
    ),
    "two names in one file": (
        "Global:\n  local_batch_size: 4\nData:\n  batch_size:\n    local_batch_size: 8\n",
        (),
        [
            "bad.yaml:5  'Global.local_batch_size' is 4 (line 2) and 'Data.batch_size.local_batch_size' is 8 (line 5), and both mean Data.batch_size.local_batch_size: keep one of the two",
        ],
    ),
    "other folder for validation": (
        "Data:\n  Train:\n    dataset:\n      input_dir: ./train\n  Eval:\n    dataset:\n      input_dir: ./valid\n",
        (),
        [
            "bad.yaml:7  Data.Eval.dataset.input_dir is ./valid, and Data.dataset.input_dir is ./train (bad.yaml:4): one folder is read, and its split makes the parts. Put the documents of both into one folder, or type -o Data.dataset.input_dir=./train for both",
        ],
    ),
    "other split for validation": (
        "Data:\n  Train:\n    dataset:\n      split: [969, 30, 1]\n  Eval:\n    dataset:\n      split: [949, 50, 1]\n",
        (),
        [
            "bad.yaml:7  Data.Eval.dataset.split is [949, 50, 1], and Data.dataset.split is [969, 30, 1] (bad.yaml:4): one split makes all parts. Make them equal, or type -o Data.dataset.split=969,30,1 for both",
        ],
    ),
    "other length for validation": (
        "Data:\n  Train:\n    dataset:\n      max_seq_len: 1024\n  Eval:\n    dataset:\n      max_seq_len: 512\n",
        (),
        [
            "bad.yaml:7  Data.Eval.dataset.max_seq_len is 512, and Data.dataset.max_seq_len is 1024 (bad.yaml:4): the sequences of all parts have one length. Make them equal, or type -o Data.dataset.max_seq_len=1024 for both",
        ],
    ),
    "override of the validation's folder": (
        "Data:\n  Train:\n    dataset:\n      input_dir: ./train\n",
        ("Data.Eval.dataset.input_dir=./valid",),
        [
            "-o Data.Eval.dataset.input_dir=./valid  Data.Eval.dataset.input_dir is ./valid, and Data.dataset.input_dir is ./train (bad.yaml:4): one folder is read, and its split makes the parts. Put the documents of both into one folder, or type -o Data.dataset.input_dir=./train for both",
        ],
    ),
    "tensor parallel ppfleetx": (
        "Global:\n  local_batch_size: 8\nDistributed:\n  mp_degree: 8\n",
        (),
        [
            "bad.yaml:4  mp_degree 8 takes 8 processes, and this is one: type `fastffn launch --nproc 8 -- pretrain ...`, or set the degrees to 1",
        ],
    ),
    "run mode": (
        "Engine:\n  run_mode: steps\n",
        (),
        [
            "bad.yaml:2  Engine.run_mode must be 'step' or 'epoch', not 'steps'",
        ],
    ),
    "unit of zero": (
        "Model:\n  vocab_size_divisible_unit: 0\n",
        (),
        [
            "bad.yaml:2  Model.vocab_size_divisible_unit must be an integer of at least 1, not 0",
        ],
    ),
    "sampler of another task": (
        "Data:\n  Train:\n    sampler:\n      name: RepeatedAugSampler\n",
        (),
        [
            "bad.yaml:4  Data.Train.sampler.name RepeatedAugSampler: this sampler is not a GPT's. Write DistributedBatchSampler or GPTBatchSampler, or remove the key",
        ],
    ),
}
