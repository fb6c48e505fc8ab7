"""The vision tower of two families."""

SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "layer_norm_eps": 1e-06,
    "hidden_act": "gelu_pytorch_tanh",
}
"""siglip-so400m-patch14-384."""
