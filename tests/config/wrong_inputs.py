"""Wrong inputs and, word for word, what the user reads: `name: (YAML text, overrides, problems)`."""

# ruff: noqa: E501 (the texts stand as they are printed)
# fmt: off
WRONG_INPUTS: dict[str, tuple[str, tuple[str, ...], list[str]]] = {
    "unknown key": (
        "Engine:\n  max_stps: 5\n",
        (),
        [
            "bad.yaml:2  unknown key 'Engine.max_stps'. Did you mean 'Engine.max_steps'?",
        ],
    ),
    "unknown section": (
        "Modle:\n  hidden_size: 64\n",
        (),
        [
            "bad.yaml:1  unknown section 'Modle'. Did you mean 'Model'?",
        ],
    ),
    "section in lower case": (
        "model:\n  hidden_size: 64\n",
        (),
        [
            "bad.yaml:1  unknown section 'model'. Did you mean 'Model'?",
        ],
    ),
    "key of another section": (
        "Engine:\n  hidden_size: 64\n",
        (),
        [
            "bad.yaml:2  unknown key 'Engine.hidden_size'. Did you mean 'Model.hidden_size'?",
        ],
    ),
    "key of another program": (
        "Generation:\n  max_new_tokens: 9\n",
        (),
        [
            "bad.yaml:2  unknown key 'Generation.max_new_tokens'. Did you mean 'Generation.max_dec_len'?",
        ],
    ),
    "key unlike any other": (
        "Fused:\n  zzz: 1\n",
        (),
        [
            "bad.yaml:2  unknown key 'Fused.zzz'. 'Fused' has: tensor_fusion, low_rank_ffn",
        ],
    ),
    "text for an integer": (
        "Model:\n  num_layers: twelve\n",
        (),
        [
            "bad.yaml:2  'Model.num_layers' must be an integer of at least 1, not 'twelve' (str)",
        ],
    ),
    "quoted number": (
        "Model:\n  num_layers: '12'\n",
        (),
        [
            "bad.yaml:2  'Model.num_layers' must be an integer of at least 1, not '12' (str). Remove the quotes: 12",
        ],
    ),
    "underscored number": (
        "Engine:\n  max_steps: 10_000\n",
        (),
        [
            "bad.yaml:2  'Engine.max_steps' must be an integer of at least 1, not '10_000' (str). Write 10000",
        ],
    ),
    "fraction for an integer": (
        "Model:\n  num_layers: 1.5\n",
        (),
        [
            "bad.yaml:2  'Model.num_layers' must be an integer of at least 1, not 1.5 (float)",
        ],
    ),
    "bool for an integer": (
        "Model:\n  num_layers: true\n",
        (),
        [
            "bad.yaml:2  'Model.num_layers' must be an integer of at least 1, not true (bool)",
        ],
    ),
    "number for a bool": (
        "Model:\n  use_recompute: 1\n",
        (),
        [
            "bad.yaml:2  'Model.use_recompute' must be true or false, not 1 (int)",
        ],
    ),
    "off for a bool": (
        "Model:\n  use_recompute: off\n",
        (),
        [
            "bad.yaml:2  'Model.use_recompute' must be true or false, not 'off' (str). In YAML 1.2 off is text: write false",
        ],
    ),
    "number for text": (
        "Engine:\n  save_load:\n    output_dir: 2026\n",
        (),
        [
            "bad.yaml:3  'Engine.save_load.output_dir' must be text that is not empty, not 2026 (int). Put it in quotes: '2026'",
        ],
    ),
    "text for a list": (
        "Engine:\n  log_sinks: visualdl\n",
        (),
        [
            "bad.yaml:2  'Engine.log_sinks' must be a list of 'tensorboard' and 'visualdl', not 'visualdl' (str). Write [visualdl]",
        ],
    ),
    "unknown element of a list": (
        "Engine:\n  log_sinks: [visualdl, tensorbord]\n",
        (),
        [
            "bad.yaml:2  'Engine.log_sinks' must be a list of 'tensorboard' and 'visualdl', not [visualdl, tensorbord] (list). Did you mean 'tensorboard'?",
        ],
    ),
    "value for a block": (
        "Model:\n  ffn: low_rank\n",
        (),
        [
            "bad.yaml:2  'Model.ffn' must be a block of keys, not 'low_rank' (str). Write ffn: {kind: low_rank}",
        ],
    ),
    "block for a value": (
        "Model:\n  hidden_size:\n    value: 64\n",
        (),
        [
            "bad.yaml:2  'Model.hidden_size' must be an integer of at least 1, not a block of keys",
        ],
    ),
    "value for the learning rates": (
        "Optimizer:\n  lr: 1e-4\n",
        (),
        [
            "bad.yaml:2  'Optimizer.lr' must be a block of keys, not 0.0001 (float). Write lr: {max_lr: 0.0001}",
        ],
    ),
    "folder for the data": (
        "Data:\n  dataset: ./data\n",
        (),
        [
            "bad.yaml:2  'Data.dataset' must be a block of keys, not './data' (str). Write dataset: {input_dir: ./data}",
        ],
    ),
    "beyond every count": (
        "Engine:\n  max_steps: 1e12\n",
        (),
        [
            "bad.yaml:2  'Engine.max_steps' must be an integer of at most 2147483647, not 1000000000000.0 (float)",
        ],
    ),
    "empty path": (
        "Engine:\n  save_load:\n    ckpt_dir: ''\n",
        (),
        [
            "bad.yaml:3  'Engine.save_load.ckpt_dir' must be text that is not empty, not '' (str)",
        ],
    ),
    "bracket too many": (
        "Model: {num_layers: 2}}\n",
        (),
        [
            "bad.yaml:1  a '}' without its opening bracket: remove it",
        ],
    ),
    "several beams": (
        "Generation:\n  num_beams: 4\n",
        (),
        [
            "bad.yaml:2  num_beams 4: beam search is not in this version. Set num_beams to 1, with decode_strategy sampling or greedy_search",
        ],
    ),
    "unknown choice": (
        "Engine:\n  mix_precision:\n    dtype: bf16\n",
        (),
        [
            "bad.yaml:3  'Engine.mix_precision.dtype' must be one of 'float16', 'bfloat16', not 'bf16' (str). Did you mean 'bfloat16'?",
        ],
    ),
    "list for a kind of feed-forward": (
        "Model:\n  ffn:\n    kind: low_rank\n",
        ("Model.ffn.kind=[]",),
        [
            "-o Model.ffn.kind=[]  'Model.ffn.kind' must be one of 'dense', 'low_rank', 'narrow', 'thin', 'monarch', 'block_dense', 'block_diagonal', 'low_rank_activation', 'moe', 'guided', not [] (list)",
        ],
    ),
    "unknown kind of feed-forward": (
        "Model:\n  ffn:\n    kind: lowrank\n",
        (),
        [
            "bad.yaml:3  'Model.ffn.kind' must be one of 'dense', 'low_rank', 'narrow', 'thin', 'monarch', 'block_dense', 'block_diagonal', 'low_rank_activation', 'moe', 'guided', not 'lowrank' (str). Did you mean 'low_rank'?",
        ],
    ),
    "option of another kind": (
        "Model:\n  ffn:\n    rank: 8\n",
        (),
        [
            "bad.yaml:3  'Model.ffn.rank' is not an option of the feed-forward kind 'dense': remove it, or set Model.ffn.kind: low_rank (thin, block_dense, low_rank_activation, guided have it, too)",
        ],
    ),
    "zero where one is the least": (
        "Model:\n  hidden_size: 0\n",
        (),
        [
            "bad.yaml:2  'Model.hidden_size' must be an integer of at least 1, not 0 (int)",
        ],
    ),
    "probability of one": (
        "Model:\n  hidden_dropout_prob: 1\n",
        (),
        [
            "bad.yaml:2  'Model.hidden_dropout_prob' must be a number of at least 0 and below 1, not 1 (int)",
        ],
    ),
    "infinite rate": (
        "Optimizer:\n  lr:\n    max_lr: .inf\n",
        (),
        [
            "bad.yaml:3  'Optimizer.lr.max_lr' must be a number above 0, not inf (float)",
        ],
    ),
    "warm-up rate above one": (
        "Optimizer:\n  lr:\n    warmup_rate: 2000\n",
        (),
        [
            "bad.yaml:3  'Optimizer.lr.warmup_rate' must be a number of at least 0 and at most 1, not 2000 (int)",
        ],
    ),
    "top_p of zero": (
        "Generation:\n  top_p: 0\n",
        (),
        [
            "bad.yaml:2  'Generation.top_p' must be a number above 0 and at most 1, not 0 (int)",
        ],
    ),
    "bad split": (
        "Data:\n  dataset:\n    split: 90%,10%\n",
        (),
        [
            "bad.yaml:3  'Data.dataset.split' must be weights such as '949,50,1' or [949, 50, 1], not '90%,10%' (str)",
        ],
    ),
    "unknown device": (
        "Global:\n  device: cuda\n",
        (),
        [
            "bad.yaml:2  'Global.device' must be auto, cpu, gpu, npu or a plugin's type, or with a number: gpu:0, npu:0, not 'cuda' (str). Did you mean 'gpu'?",
        ],
    ),
    "several devices": (
        "Global:\n  device: gpu:0,1\n",
        (),
        [
            "bad.yaml:2  device gpu:0,1 names several devices, and a process has one: write gpu, and type `fastffn launch --devices 0,1 -- pretrain ...`",
        ],
    ),
    "global and local batch differ": (
        "Data:\n  batch_size:\n    global_batch_size: 64\n    local_batch_size: 8\n",
        (),
        [
            "bad.yaml:4  global_batch_size 64 and local_batch_size 8 differ, and one process does the whole step: set both to 64, or leave one blank",
        ],
    ),
    "micro batch does not divide": (
        "Data:\n  batch_size:\n    global_batch_size: 8\n    micro_batch_size: 3\n",
        (),
        [
            "bad.yaml:4  global_batch_size 8 is not a multiple of micro_batch_size 3: set micro_batch_size to 2, or global_batch_size to 9",
        ],
    ),
    "default micro batch does not divide": (
        "Data:\n  batch_size:\n    global_batch_size: 10\n",
        (),
        [
            "bad.yaml:3  global_batch_size 10 is not a multiple of micro_batch_size 8 (default): set micro_batch_size to 5",
        ],
    ),
    "accumulation disagrees": (
        "Engine:\n  accumulate_steps: 3\nData:\n  batch_size:\n    local_batch_size: 8\n    micro_batch_size: 4\n",
        (),
        [
            "bad.yaml:2  accumulate_steps 3 is not local_batch_size 8 / micro_batch_size 4 = 2: leave accumulate_steps blank",
        ],
    ),
    "heads do not divide the width": (
        "Model:\n  hidden_size: 100\n  num_attention_heads: 12\n",
        (),
        [
            "bad.yaml:3  hidden_size 100 is not a multiple of num_attention_heads 12: set num_attention_heads to 10, or hidden_size to 108",
        ],
    ),
    "rank above the width": (
        "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n  ffn:\n    kind: low_rank\n    rank: 65\n",
        (),
        [
            "bad.yaml:6  rank 65 is above hidden_size 64: set Model.ffn.rank to at most 64; the original uses 8",
        ],
    ),
    "rank above the inner width": (
        "Model:\n  ffn_hidden_size: 32\n  ffn:\n    kind: low_rank\n    rank: 33\n",
        (),
        [
            "bad.yaml:5  rank 33 is above ffn_hidden_size 32: set Model.ffn.rank to at most 32; the original uses 8",
        ],
    ),
    "attention rank above the width": (
        "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n  attention_rank: 65\n",
        (),
        [
            "bad.yaml:4  attention_rank 65 is above hidden_size 64: set Model.attention_rank to at most 42",
        ],
    ),
    "embedding rank above the vocabulary": (
        "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n  vocab_size: 32\n  embedding_rank: 33\n",
        (),
        [
            "bad.yaml:5  embedding_rank 33 is above vocab_size 32: set Model.embedding_rank to at most 21",
        ],
    ),
    "more hidden units than there will be": (
        "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n  ffn:\n    kind: narrow\n    width: 257\n",
        (),
        [
            "bad.yaml:6  width 257 is above ffn_hidden_size 256, to which hidden units are grown: set Model.ffn.width to at most 256; a quarter of hidden_size is usual",
        ],
    ),
    "rank above the hidden units": (
        "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n  ffn:\n    kind: thin\n    rank: 17\n",
        (),
        [
            "bad.yaml:6  rank 17 is above width 16: set Model.ffn.rank to at most 16, or raise Model.ffn.width",
        ],
    ),
    "blocks that do not divide": (
        "Model:\n  hidden_size: 48\n  num_attention_heads: 4\n  ffn:\n    kind: monarch\n    blocks: 5\n",
        (),
        [
            "bad.yaml:6  5 blocks do not divide both hidden_size 48 and ffn_hidden_size 192: set Model.ffn.blocks to one of 1, 2, 3, 4, 6, 8, 12, 16, 24, 48",
        ],
    ),
    "blocks of a guided kind that do not divide": (
        "Model:\n  hidden_size: 18\n  num_attention_heads: 2\n  ffn:\n    kind: guided\n    inner: block_diagonal\n",
        (),
        [
            "bad.yaml:2  4 blocks do not divide both hidden_size 18 and ffn_hidden_size 72: set Model.ffn.blocks to one of 1, 2, 3, 6, 9, 18",
        ],
    ),
    "rank that the blocks do not divide": (
        "Model:\n  ffn:\n    kind: block_dense\n    rank: 30\n",
        (),
        [
            "bad.yaml:4  rank 30 is not a multiple of 4 blocks: set Model.ffn.rank to 28 or 32",
        ],
    ),
    "rank of blocks above the width": (
        "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n  ffn:\n    kind: block_dense\n    rank: 68\n",
        (),
        [
            "bad.yaml:6  rank 68 is above 64: set Model.ffn.rank to 64",
        ],
    ),
    "more choices than experts": (
        "Model:\n  ffn:\n    kind: moe\n    experts: 4\n    top_k: 5\n",
        (),
        [
            "bad.yaml:5  top_k 5 is above experts 4: set Model.ffn.top_k to at most 4; 1 and 2 are usual",
        ],
    ),
    "options that the guided kind does not have": (
        "Model:\n  ffn:\n    kind: guided\n    rank: 4\n    width: 8\n    blocks: 2\n",
        (),
        [
            "bad.yaml:5  width is not an option of the inner kind low_rank, which has rank: remove Model.ffn.width, or set Model.ffn.inner",
            "bad.yaml:6  blocks is not an option of the inner kind low_rank, which has rank: remove Model.ffn.blocks, or set Model.ffn.inner",
        ],
    ),
    "guided rank above the width": (
        "Model:\n  hidden_size: 64\n  num_attention_heads: 4\n  ffn:\n    kind: guided\n    rank: 65\n",
        (),
        [
            "bad.yaml:6  rank 65 is above hidden_size 64: set Model.ffn.rank to at most 64; the original uses 8",
        ],
    ),
    "sequence longer than positions": (
        "Data:\n  dataset:\n    max_seq_len: 2048\n",
        (),
        [
            "bad.yaml:3  max_seq_len 2048 is longer than max_position_embeddings 1024: set Data.dataset.max_seq_len to at most 1024, or raise Model.max_position_embeddings",
        ],
    ),
    "evaluation window longer than positions": (
        "Offline_Eval:\n  max_seq_len: 2048\n",
        (),
        [
            "bad.yaml:2  Offline_Eval.max_seq_len 2048 is longer than max_position_embeddings 1024: set it to at most 1024, or leave it blank",
        ],
    ),
    "evaluation shift longer than the window": (
        "Offline_Eval:\n  max_seq_len: 16\n  overlapping_eval: 32\n",
        (),
        [
            "bad.yaml:3  overlapping_eval 32 is longer than the window of 16 tokens: set it to at most 16, or leave it blank",
        ],
    ),
    "half precision said twice": (
        "Engine:\n  mix_precision:\n    use_pure_fp16: True\n    dtype: bfloat16\n",
        (),
        [
            "bad.yaml:4  use_pure_fp16: true means dtype: float16, and dtype is bfloat16: remove one of the two",
        ],
    ),
    "operator in both lists": (
        "Engine:\n  mix_precision:\n    custom_white_list: [reduce_sum]\n",
        (),
        [
            "bad.yaml:3  reduce_sum in custom_black_list and in custom_white_list: keep one",
        ],
    ),
    "end token outside the vocabulary": (
        "Model:\n  vocab_size: 100\nData:\n  dataset:\n    eos_id: 100\n",
        (),
        [
            "bad.yaml:5  eos_id 100 is not below vocab_size 100: set Model.vocab_size to at least 101, or leave eos_id blank",
        ],
    ),
    "least length above the most": (
        "Generation:\n  min_dec_len: 9\n  max_dec_len: 8\n",
        (),
        [
            "bad.yaml:2  min_dec_len 9 is above max_dec_len 8: lower the one or raise the other",
        ],
    ),
    "beam search": (
        "Generation:\n  decode_strategy: beam_search\n",
        (),
        [
            "bad.yaml:2  'Generation.decode_strategy' must be one of 'sampling', 'greedy_search', not 'beam_search' (str). Beam search is not in this version",
        ],
    ),
    "tensor parallel": (
        "Distributed:\n  mp_degree: 8\n",
        (),
        [
            "bad.yaml:2  mp_degree 8 takes 8 processes, and this is one: type `fastffn launch --nproc 8 -- pretrain ...`, or set the degrees to 1",
        ],
    ),
    "sharded": (
        "Distributed:\n  sharding:\n    sharding_degree: 16\n",
        (),
        [
            "bad.yaml:3  sharding_degree 16 takes 16 processes, and this is one: type `fastffn launch --nproc 16 -- pretrain ...`, or set the degrees to 1",
        ],
    ),
    "duplicate key": (
        "Model:\n  hidden_size: 64\n  num_layers: 2\n  hidden_size: 128\n",
        (),
        [
            "bad.yaml:4  duplicate key 'Model.hidden_size': line 2 has it already. Keep one of the two",
        ],
    ),
    "duplicate section": (
        "Model: {hidden_size: 64}\nEngine: {}\nModel: {num_layers: 2}\n",
        (),
        [
            "bad.yaml:3  duplicate key 'Model': line 1 has it already. Keep one of the two",
        ],
    ),
    "tab": (
        "Engine:\n\tmax_steps: 5\n",
        (),
        [
            "bad.yaml:2  a tab stands in the indentation: use spaces",
        ],
    ),
    "no space after a colon": (
        "Engine:\n  max_steps:5\n  eval_freq: 3\n",
        (),
        [
            "bad.yaml:2  no space after the colon: write 'max_steps: 5'",
        ],
    ),
    "no colon": (
        "Engine\n  max_steps: 5\n",
        (),
        [
            "bad.yaml:1  a key without a colon: write 'Engine:'",
        ],
    ),
    "uneven indentation": (
        "Engine:\n  max_steps: 5\n eval_freq: 3\n",
        (),
        [
            "bad.yaml:3  this line does not line up with the block that begins in line 1: give keys of one block the same indentation",
        ],
    ),
    "indented under a value": (
        "Engine:\n  max_steps: 5\n    eval_freq: 3\n",
        (),
        [
            "bad.yaml:3  this line is indented under line 2, which has a value already: give keys of one block the same indentation",
        ],
    ),
    "unquoted colon": (
        "notes:\n  a: b: c\n",
        (),
        [
            "bad.yaml:2  a second ': ' in this line: put a value that holds ': ' in quotes",
        ],
    ),
    "open bracket": (
        "Engine: {max_steps: 5\nModel: {}\n",
        (),
        [
            "bad.yaml:1  a bracket is opened and not closed, or a comma is missing: write [a, b]",
        ],
    ),
    "open quote": (
        "notes:\n  a: 'x\n",
        (),
        [
            "bad.yaml:2  a quote is opened and not closed: close it",
        ],
    ),
    "two documents": (
        "Model: {}\n---\nEngine: {}\n",
        (),
        [
            "bad.yaml:2  a second document begins here: keep one document in a file",
        ],
    ),
    "forbidden first character": (
        "notes:\n  a: @x\n",
        (),
        [
            "bad.yaml:2  a value may not begin with '@': put it in quotes",
        ],
    ),
    "unknown alias": (
        "notes:\n  a: *x\n",
        (),
        [
            "bad.yaml:2  an alias without its anchor: put a value that begins with '*' in quotes",
        ],
    ),
    "alias inside its anchor": (
        "notes: &a\n  b: *a\n",
        (),
        [
            "bad.yaml:1  an alias stands inside its own anchor: write the values out",
        ],
    ),
    "object tag": (
        "notes:\n  a: !!python/object/apply:os.system [ls]\n",
        (),
        [
            "bad.yaml:2  the tag !!python/object/apply:os.system is not allowed here: remove it",
        ],
    ),
    "list for a file": (
        "- Engine\n- Model\n",
        (),
        [
            "bad.yaml:1  must hold sections such as 'Model:', one below the other",
        ],
    ),
    "missing base": (
        "_base_: nowhere.yaml\n",
        (),
        [
            "bad.yaml:1  '_base_' names nowhere.yaml, and there is no such file",
        ],
    ),
    "base of itself": (
        "_base_: bad.yaml\n",
        (),
        [
            "bad.yaml:1  '_base_' goes round in a circle: bad.yaml -> bad.yaml. Remove one of them",
        ],
    ),
    "base inside a block": (
        "Engine:\n  _base_: other.yaml\n",
        (),
        [
            "bad.yaml:2  'Engine._base_': '_base_' stands at the top of a file only",
        ],
    ),
    "override without equals": (
        "",
        ("Engine.max_steps",),
        [
            "-o Engine.max_steps  there is no '=': write -o Section.key=value, as in -o Engine.max_steps=100",
        ],
    ),
    "override without key": (
        "",
        ("=5",),
        [
            "-o =5  there is no key before the '=': write -o Section.key=value, as in -o Engine.max_steps=100",
        ],
    ),
    "override of an unknown key": (
        "",
        ("mx_lr=1e-3",),
        [
            "-o mx_lr=1e-3  unknown key 'mx_lr'. Did you mean 'Optimizer.lr.max_lr'?",
        ],
    ),
    "override in lower case": (
        "",
        ("engine.max_steps=5",),
        [
            "-o engine.max_steps=5  unknown key 'engine.max_steps'. Did you mean 'Engine.max_steps'?",
        ],
    ),
    "switch of a dense model": (
        "Schedule:\n  switch: fraction\n",
        (),
        [
            "bad.yaml:2  switch fraction has nothing to end: Model.ffn is dense from the start. Set Schedule.switch to never, or Model.ffn.kind to low_rank",
        ],
    ),
    "switch of a kind without a dense form": (
        "Model:\n  ffn:\n    kind: moe\nSchedule:\n  switch: slope\n",
        (),
        [
            "bad.yaml:5  switch slope cannot make kind moe dense, which no dense layer computes: set Schedule.switch to never, or Model.ffn.kind to low_rank",
        ],
    ),
    "dense start of a kind that dense weights do not give": (
        "Model:\n  ffn:\n    kind: guided\nSchedule:\n  switch: fraction\n  dense_start: 0.1\n",
        (),
        [
            "bad.yaml:6  dense_start 0.1 cannot factor dense weights into kind guided: set it to 0, or Model.ffn.kind to one of low_rank, narrow, thin, monarch, block_dense, block_diagonal",
        ],
    ),
    "stages out of order": (
        "Model:\n  ffn:\n    kind: low_rank\nSchedule:\n  switch: slope\n  at: 0.2\n  earliest: 0.3\n  dense_start: 0.25\n",
        (),
        [
            "bad.yaml:7  earliest 0.3 is not below at 0.2, the latest switch: lower Schedule.earliest, or raise Schedule.at",
            "bad.yaml:8  dense_start 0.25 is not below at 0.2, where stage 1 ends: lower Schedule.dense_start, or raise Schedule.at",
        ],
    ),
    "override of a wrong type": (
        "",
        ("Engine.max_steps=many",),
        [
            "-o Engine.max_steps=many  'Engine.max_steps' must be an integer of at least 1, not 'many' (str)",
        ],
    ),
    "override with Python's None": (
        "",
        ("Engine.save_load.ckpt_dir=None",),
        [
            "-o Engine.save_load.ckpt_dir=None  None is Python's word: leave the value blank (-o Engine.save_load.ckpt_dir=)",
        ],
    ),
    "override beyond a list": (
        "",
        ("Engine.mix_precision.custom_white_list.5=x",),
        [
            "-o Engine.mix_precision.custom_white_list.5=x  'Engine.mix_precision.custom_white_list' has no element '5' (there are: 0 to 1). Or set the whole list: -o 'Engine.mix_precision.custom_white_list=[...]'",
        ],
    ),
    "override with a bare colon": (
        "",
        ("notes.a=b: c",),
        [
            "-o notes.a=b: c  quote the value, or write it as {key: value}",
        ],
    ),
    "override that breaks a rule of the file": (
        "Model:\n  hidden_size: 64\n",
        ("Model.num_attention_heads=5",),
        [
            "-o Model.num_attention_heads=5  hidden_size 64 is not a multiple of num_attention_heads 5: set num_attention_heads to 4, or hidden_size to 65",
        ],
    ),
}
