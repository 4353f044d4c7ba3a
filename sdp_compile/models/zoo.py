"""The library models that ``sdp-compile check --zoo`` goes through, small enough for a laptop."""

from __future__ import annotations

from typing import Any

from torch import nn

from sdp_compile.errors import SDPError
from sdp_compile.models.spec import load
from sdp_compile.models.words import LIBRARIES

TIMM = tuple(
    """
    resnet18 vit_tiny_patch16_224 convnext_atto swin_tiny_patch4_window7_224 efficientnet_b0 regnety_002
    mobilenetv3_small_050 beit_base_patch16_224 eca_botnext26ts_256 lambda_resnet26t mobileone_s1 mobileone_s2
    cait_xxs24_224 cait_xxs36_224 coat_tiny coat_mini convit_tiny convit_small convmixer_768_32 convnext_atto_rms
    convnext_atto_ols cpubone_nano cpubone_s0 crossvit_tiny_240 crossvit_18_240 csatv2 csatv2_21m cs3darknet_focus_s
    darknet17 cspnext_tiny cspnext_m davit_tiny deepseek_vit_412m deit_tiny_patch16_224 deit_small_patch16_224
    densenet121 densenet201 dla34 dla60 dpn48b dpn68b edgenext_xx_small edgenext_small efficientformer_l1
    efficientformer_l3 efficientformerv2_s0 efficientformerv2_s2 tinynet_e tinynet_c efficientvim_m1 efficientvim_m2
    efficientvit_b0 efficientvit_b1 efficientvit_m0 efficientvit_m2 vit_tiny_patch16_dinov3_qkvb
    eva02_tiny_patch14_224 fasternet_t0 fasternet_t1 fastvit_t8 fastvit_sa12 focalnet_tiny_srf focalnet_tiny_lrf
    gcvit_xxtiny gcvit_xtiny gemma4_vit_167m ghostnet_050 ghostnet_100 hardcorenas_b hardcorenas_c hgnetv2_b0
    hgnet_tiny hiera_tiny_224 hiera_small_abswin_256 sam2_hiera_tiny sam2_hiera_small hrnet_w18_small hrnet_w18_ssld
    iformer_t iformer_m inception_next_atto inception_next_tiny inception_resnet_v2 inception_v3 inception_v4
    lcnetv2_small lcnetv2_base levit_128 lowformer_b0 lowformer_b1 mambaout_femto mambaout_tiny maxvit_pico_rw_256
    coatnet_pico_rw_224 poolformer_s12 convformer_s18 gmixer_12_224 mixer_s32_224 tf_mobilenetv3_small_minimal_100
    mobilenetv5_base mobilevit_xxs mobilevit_xs mvitv2_tiny mvitv2_small naflexvit_base_patch16_siglip nasnetalarge
    nest_tiny nest_small nextvit_small nextvit_base nf_regnet_b0 nf_seresnet26 pit_xs_224 pit_s_224 pnasnet5large
    pvt_v2_b0 pvt_v2_b1 qwen3_vit_88m rdnet_tiny regnetx_002 regnetv_040 repghostnet_050 repghostnet_080 repvit_m1
    repvit_m1_0 res2net50_26w_4s res2net50d resnest14d resnest26d resnet18d resnetv2_18 resnetv2_34 rexnet_100
    rexnet_150 selecsls42 selecsls42b legacy_seresnet18 legacy_seresnet34 sequencer2d_s sequencer2d_m shvit_s1
    shvit_s3 skresnet18 skresnet50 starnet_s050 starnet_s2 swiftformer_xs swiftformer_l1 swin_s3_tiny_224
    swinv2_tiny_window16_256 swinv2_tiny_window8_256 swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224 tiny_vit_5m_224
    tiny_vit_11m_224 tnt_s_legacy_patch16_224 tnt_s_patch16_224 tresnet_m twins_svt_small twins_pcpvt_small vgg11
    visformer_tiny visformer_small vit_small_patch8_224 vit_tiny_r_s16_p8_224 vit_small_r26_s32_224
    vit_srelpos_small_patch16_224 vit_relpos_small_patch16_224 samvit_base_patch16_224 vitamin_small_224 volo_d1_224
    ese_vovnet19b_slim_dw vovnet39a legacy_xception xception41p xception65p xcit_nano_12_p8_224 xcit_nano_12_p16_224
    """.split()
)
"""The smallest models of every family."""

TRANSFORMERS = tuple(
    """
    llama gpt2 bert t5 vit whisper mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3
    gpt_neo gpt_neox gptj gpt_bigcode opt bloom falcon mpt codegen stablelm starcoder2 olmo olmo2 olmoe cohere granite
    granitemoe deepseek_v2 deepseek_v3 glm4 smollm3 persimmon biogpt xglm openai-gpt nemotron helium
    roberta albert distilbert electra deberta deberta-v2 mobilebert mpnet roformer squeezebert funnel xlm-roberta
    camembert ernie convbert nystromformer rembert fnet megatron-bert modernbert esm ibert layoutlm
    bart mbart mt5 pegasus marian blenderbot m2m_100 plbart umt5 prophetnet switch_transformers longt5
    deit beit dinov2 swin swinv2 convnext convnextv2 resnet regnet mobilenet_v1 mobilenet_v2 mobilevit poolformer pvt
    segformer cvt focalnet levit efficientnet bit vit_msn ijepa timesformer vivit videomae dpt
    wav2vec2 hubert wavlm unispeech unispeech-sat sew data2vec-audio audio-spectrogram-transformer speech_to_text
    mamba mamba2 rwkv
    """.split()
)
"""Text decoders, encoders, encoder-decoders, vision and speech models, and state space models."""


def models_of(library: str) -> tuple[str, ...]:
    """Returns the names ``library:name`` of a library's models, well-known ones first."""
    if library == "torchvision":
        from torchvision import models

        modules: list[Any] = [models, models.segmentation, models.video]
        names = tuple(name for module in modules for name in models.list_models(module=module))
    else:
        names = {"timm": TIMM, "transformers": TRANSFORMERS}[library]
    return tuple(f"{library}:{name}" for name in names)


def build(name: str) -> tuple[nn.Module, Any]:
    """Returns the small model that ``library:name`` stands for, with its example inputs."""
    library = name.partition(":")[0]
    if library not in LIBRARIES:
        raise SDPError(f"{name!r}: the libraries are {', '.join(LIBRARIES)}.")
    loaded = load(name, size="small")
    return loaded.model, loaded.example_inputs
