//! Quantized files against references computed on their dequantized weights.

use super::*;

/// With activations in f32 the weights alone count: read, put in order and widened. Files in every block format, some
/// with several.
#[test]
fn widened_weights_agree_as_dense_ones_do() {
    let files = [
        "tiny-llama-q8_0",
        "tiny-llama-q4_0",
        "mixed-q2_k",
        "mixed-q3_k_m",
        "mixed-q4_1",
        "mixed-q4_k_m",
        "mixed-q5_0",
        "mixed-q5_1",
        "mixed-q5_k_m",
        "mixed-q6_k",
        "mixed-q8_0",
    ];
    for name in files {
        let mut model = gguf(name);
        model.widen_always();
        agrees(&mut model, &format!("{name}.dequantized"), 1e-4);
    }
}

/// candle rounds activations to 8 bits before it multiplies them with blocks. What that costs was measured: 0.078 and
/// 0.157.
#[test]
fn blocks_agree_within_what_eight_bit_activations_cost() {
    agrees(&mut gguf("tiny-llama-q8_0"), "tiny-llama-q8_0.dequantized", 0.1);
    agrees(&mut gguf("tiny-llama-q4_0"), "tiny-llama-q4_0.dequantized", 0.2);
}

/// With what quantizing costs: 0.111 and 0.861 were measured.
#[test]
fn quantized_models_stay_near_the_one_they_were_made_of() {
    agrees(&mut gguf("tiny-llama-q8_0"), "tiny-llama", 0.13);
    agrees(&mut gguf("tiny-llama-q4_0"), "tiny-llama", 0.95);
}
