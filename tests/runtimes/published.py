"""What TensorRT and trtexec print, as published. Each piece names its source.

They are shortened to the lines that matter, and kept as they were otherwise.
"""

# Lines are as long as they were published.
# ruff: noqa: E501

# NVIDIA TensorRT Developer Guide 8.x, "Structured Sparsity".
GUIDE_OLD = """\
[03/23/2021-00:14:05] [I] [TRT] (Sparsity) Layers eligible for sparse math: conv1, conv2, conv3
[03/23/2021-00:14:05] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for \
layers: conv2, conv3
"""

# https://github.com/NVIDIA/TensorRT/issues/1403 (2021, TensorRT 8.0): eligible, none picked.
ISSUE_1403 = """\
[TensorRT] INFO: (Sparsity) Layers eligible for sparse math: Conv_0
[TensorRT] INFO: (Sparsity) TRT inference plan picked sparse implementation for layers:
"""

# https://github.com/pytorch/TensorRT/issues/1340 (TensorRT 8.4.2): nothing eligible.
ISSUE_1340 = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v8402] # trtexec --onnx=./onnx/bert-sparse-ASP-qabase-\
sq128-b1.onnx --sparsity=force --workspace=4096
[09/16/2022-09:55:37] [I] [TRT] Total Activation Memory: 7864832
[09/16/2022-09:55:37] [I] [TRT] (Sparsity) Layers eligible for sparse math:
[09/16/2022-09:55:37] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for \
layers:
[09/16/2022-09:55:38] [I] Engine built in 31.1935 sec.
"""

# A public write-up of a detector on a Jetson, its section on 2:4 speed; a log without --verbose.
JETSON_NEW = """\
(Sparsity) Found 39 layer(s) eligible to use sparse tactics
(Sparsity) Chose 0 layer(s) using sparse tactics
"""

# The form of verbose logs, https://github.com/NVIDIA/Model-Optimizer/pull/1664 (TensorRT
# 10.14): `Found N layer(s) eligible to use sparse tactics: ...`. The names are ours.
VERBOSE_NEW = """\
[V] [TRT] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: {a}, {b} + act, {c}
[V] [TRT] (Sparsity) Chose 1 layer(s) using sparse tactics: {b} + act
"""

# https://github.com/zz990099/foundationpose_cpp/issues/22 (2025-04-10, TensorRT 10), but for
# CONTEXT_10, whose form is that of NVIDIA/TensorRT samples/common/sampleInference.cpp.
MEMORY_10 = """\
[04/10/2025-11:37:24] [I] [TRT] Total Host Persistent Memory: 84864 bytes
[04/10/2025-11:37:24] [I] [TRT] Total Device Persistent Memory: 0 bytes
[04/10/2025-11:37:24] [I] [TRT] Max Scratch Memory: 2065996800 bytes
[04/10/2025-11:37:24] [I] [TRT] Total Activation Memory: 2478873600 bytes
[04/10/2025-11:37:24] [I] [TRT] Total Weights Memory: 34082304 bytes
[04/10/2025-11:37:24] [I] [TRT] [MemUsageStats] Peak memory usage of TRT CPU/GPU memory \
allocators: CPU 6 MiB, GPU 2174 MiB
[04/10/2025-11:37:24] [I] Engine built in 273.506 sec.
"""
CONTEXT_10 = "[I] Created execution context with device memory size: 446.209 MiB\n"

# https://github.com/NVIDIA/TensorRT/issues/4136 (2024-09-19): an older release.
MEMORY_OLD = """\
[09/19/2024-22:15:34] [I] [TRT] Total Host Persistent Memory: 170400
[09/19/2024-22:15:34] [I] [TRT] Total Device Persistent Memory: 125895680
[09/19/2024-22:15:34] [I] [TRT] Total Scratch Memory: 59641344
[09/19/2024-22:15:34] [I] [TRT] [MemUsageStats] Peak memory usage of TRT CPU/GPU memory \
allocators: CPU 116 MiB, GPU 4 MiB
"""

# https://github.com/NVIDIA/TensorRT/issues/4177 (2024-10-03).
ISSUE_4177 = """\
[10/03/2024-10:47:59] [I] === Performance summary ===
[10/03/2024-10:47:59] [I] Throughput: 130.298 qps
[10/03/2024-10:47:59] [I] Latency: min = 5.38672 ms, max = 13.3664 ms, mean = 7.60628 ms, \
median = 7.16092 ms, percentile(90%) = 10.2996 ms, percentile(95%) = 10.8698 ms, \
percentile(99%) = 12.9675 ms
[10/03/2024-10:47:59] [I] Enqueue Time: min = 2.72876 ms, max = 15.0201 ms, mean = 7.63062 ms, \
median = 7.86694 ms, percentile(90%) = 10.1792 ms, percentile(95%) = 11.7217 ms, \
percentile(99%) = 14.1848 ms
[10/03/2024-10:47:59] [I] H2D Latency: min = 0.0065918 ms, max = 0.0698242 ms, \
mean = 0.0122212 ms, median = 0.00814819 ms, percentile(90%) = 0.0253906 ms
[10/03/2024-10:47:59] [I] GPU Compute Time: min = 5.34595 ms, max = 13.3388 ms, \
mean = 7.58404 ms, median = 7.14139 ms, percentile(90%) = 10.2881 ms, \
percentile(95%) = 10.8175 ms, percentile(99%) = 12.9485 ms
[10/03/2024-10:47:59] [I] Total GPU Compute Time: 2.96536 s
"""

# https://github.com/NVIDIA/TensorRT/issues/1403, of TensorRT 8.0: one percentile.
ISSUE_1403_TIMES = """\
[07/28/2021-08:45:44] [I] Throughput: 501.618 qps
[07/28/2021-08:45:44] [I] Latency: min = 1.81982 ms, max = 3.1843 ms, mean = 2.05464 ms, \
median = 2.02905 ms, percentile(99%) = 2.29761 ms
"""

# https://github.com/NVIDIA/TensorRT/issues/3747 (TensorRT 8.6.3).
ISSUE_3747 = """\
[03/28/2024-07:10:12] [I] === Device Information ===
[03/28/2024-07:10:12] [I] Selected Device: NVIDIA GeForce RTX 2080
[03/28/2024-07:10:12] [I] Compute Capability: 7.5
[03/28/2024-07:10:12] [I] SMs: 46
"""

# https://github.com/NVIDIA/TensorRT/issues/4020 (TensorRT 10.1): a dense and a sparse kernel.
ISSUE_4020 = r"""
{"Layers": [{
  "Name": "Reformatting CopyNode for Input Tensor 0 to resnetv15_conv0_fwd",
  "LayerType": "Reformat",
  "Inputs": [{"Name": "data", "Location": "Device", "Dimensions": [1,3,224,224],
    "Format/Datatype": "Row major linear FP32"}],
  "Outputs": [{"Name": "Reformatted Input Tensor 0", "Location": "Device",
    "Dimensions": [1,3,224,224], "Format/Datatype": "Row major Int8 format"}],
  "ParameterType": "Reformat", "Origin": "REFORMAT",
  "TacticValue": "0x00000000000003e8", "StreamId": 0, "Metadata": ""
},{
  "Name": "resnetv15_stage2_conv1_fwd + resnetv15_stage2_batchnorm1_fwd",
  "LayerType": "CaskConvolution",
  "Inputs": [{"Name": "resnetv15_stage2_relu0_fwd", "Location": "Device",
    "Dimensions": [1,128,28,28],
    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
  "Outputs": [{"Name": "resnetv15_stage2_batchnorm1_fwd", "Location": "Device",
    "Dimensions": [1,128,28,28],
    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
  "ParameterType": "Convolution", "HasSparseWeights": 0,
  "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32_tilesize32x64x64_stage6_warpsize2x2x1_g1_tensor16x8x32_t1r3s3",
  "TacticValue": "0xd3f592fae61c7986", "StreamId": 0,
  "Metadata": "[ONNX Layer: resnetv15_stage2_conv1_fwd]\u001e[ONNX Layer: resnetv15_stage2_batchnorm1_fwd]"
},{
  "Name": "resnetv15_stage3_conv4_fwd + resnetv15_stage3_batchnorm4_fwd",
  "LayerType": "CaskConvolution",
  "Inputs": [], "Outputs": [{"Name": "resnetv15_stage3_activation1",
    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
  "ParameterType": "Convolution", "HasSparseWeights": 1,
  "TacticName": "sm80_xmma_fprop_avdt_sparse_int8int8_tilesize64x64x64_tapsperload3_threadspercta128_r3s3_u1v1_scalebias_relu",
  "TacticValue": "0x9251329244d2a80b", "StreamId": 0,
  "Metadata": "[ONNX Layer: resnetv15_stage3_conv4_fwd]\u001e[ONNX Layer: resnetv15_stage3_batchnorm4_fwd]"
}],
"Bindings": ["data", "resnetv15_dense0_fwd"]}
"""

# NVIDIA/TensorRT tools/experimental/trt-engine-explorer, notebooks/layer_info.json: names only.
EXPLORER_NAMES = """
{"Layers": ["[trainStation1]"
,"(Unnamed Layer* 714) [Constant]"
,"neck.detect1.conv1.conv.weight + /neck/detect1/conv1/conv/Conv + \
PWN(/neck/detect1/conv1/relu/LeakyRelu)"
,"{ForeignNode[/head/Constant_2_output_0.../Unsqueeze_2]}"
],
"Bindings": ["input"
,"output"
]}
"""

# TensorRT 11's form: `I/O Tensors` for `Bindings`, `DataType` apart from `Format` (NVIDIA's
# 10x-to-11x migration guide). Both spellings of DataType are seen.
ELEVEN = """
{"Layers": [{
  "Name": "gemm_0", "LayerType": "gemm",
  "Inputs": [{"Name": "tokens", "Dimensions": [-1, 16], "Format": "LINEAR", "DataType": "FP16"}],
  "Outputs": [{"Name": "out", "Dimensions": [-1, 16], "Format": "LINEAR", "Datatype": "FP16"}],
  "TacticName": "sm90_xmma_gemm_f16f16_f16f32_f32_tn_n",
  "Metadata": "[ONNX Layer: fc1]\\u001f[ONNX Layer: act]"
}],
"I/O Tensors": [{"Name": "tokens", "IOMode": "INPUT", "DataType": "FP16"}]}
"""

# NVIDIA/TensorRT samples/common/sampleReporting.cpp, exportJSONProfile and exportJSONTrace.
PROFILE = """[
  { "count" : 120 }
, { "name" : "fc1", "timeMs" : 12.0, "averageMs" : 0.1, "medianMs" : 0.09, "percentage" : 60 }
, { "name" : "fc2", "timeMs" : 8.0, "averageMs" : 0.07, "percentage" : 40 }
]
"""
TIMES = """[
  { "startEnqMs" : 1, "endEnqMs" : 2, "startComputeMs" : 2, "endComputeMs" : 4.5, \
"computeMs" : 2.5, "latencyMs" : 3 }
, { "startEnqMs" : 3, "endEnqMs" : 4, "startComputeMs" : 5, "endComputeMs" : 7.25, \
"computeMs" : 2.25, "latencyMs" : 3 }
]
"""

# The head of `trtexec --help` and some of its options, as 10.5 (v100500) prints them.
HELP_10 = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v100500] [b18] # trtexec --help
=== Model Options ===
  --onnx=<file>               ONNX model

=== Build Options ===
  --minShapes=spec                   Build with dynamic shapes using a profile with the min shapes
  --optShapes=spec                   Build with dynamic shapes using a profile with the opt shapes
  --maxShapes=spec                   Build with dynamic shapes using a profile with the max shapes
  --memPoolSize=poolspec             Specify the size constraints of the designated memory pool(s)
  --profilingVerbosity=mode          Specify profiling verbosity.
  --refit                            Mark the engine as refittable.
  --fp16                             Enable fp16 precision, in addition to fp32
  --bf16                             Enable bf16 precision, in addition to fp32
  --int8                             Enable int8 precision, in addition to fp32
  --fp8                              Enable fp8 precision, in addition to fp32
  --stronglyTyped                    Create a strongly typed network. (default = disabled)
  --sparsity=spec                    Control sparsity (default = disabled).
  --saveEngine=<file>                Save the serialized engine
  --timingCacheFile=<file>           Save/load the serialized global timing cache
  --builderOptimizationLevel         Set the builder optimization level. (default is 3)
  --hardwareCompatibilityLevel=mode  Make the engine file compatible with other GPU architectures.

=== Inference Options ===
  --useSpinWait               Actively synchronize on GPU events.
  --useCudaGraph              Use CUDA graph to capture engine execution
  --noDataTransfers           Disable DMA transfers to and from device.
  --separateProfileRun        Do not attach the profiler in the benchmark run
  --exportTimes=<file>        Write the timing results in a json file
  --exportProfile=<file>      Write the profile information per layer in a json file
  --exportLayerInfo=<file>    Write the layer information of the engine in a json file
"""

# TensorRT 11 has no precision flags; what it makes its default stays as a flag without effect
# (NVIDIA's 10x-to-11x migration guide for trtexec).
HELP_11 = (
    HELP_10.replace("v100500", "v110100")
    .replace("  --fp16  ", "  (fp16) ")
    .replace("  --bf16  ", "  (bf16) ")
    .replace("  --int8  ", "  (int8) ")
    .replace("  --fp8  ", "  (fp8) ")
)
