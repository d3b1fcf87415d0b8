//! The tensors that a model of a configuration has, by their Hugging Face names.

use super::ModelConfig;

/// Name of the token embedding, `[vocabulary, hidden]`.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the norm before the output head, `[hidden]`.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Name of the output head, `[vocabulary, hidden]`; not there where it is tied to the embedding.
pub const HEAD: &str = "lm_head.weight";

impl ModelConfig {
    /// Name and shape of every tensor: embedding, layers, final norm, head unless tied.
    ///
    /// Matrices are `[out, in]`: `y = x W^T + b`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![(EMBEDDING.into(), vec![self.vocabulary, self.hidden])];
        for layer in 0..self.layers.len() {
            self.layer_tensors(layer, &mut tensors);
        }
        tensors.push((FINAL_NORM.into(), vec![self.hidden]));
        if !self.tied {
            tensors.push((HEAD.into(), vec![self.vocabulary, self.hidden]));
        }
        tensors
    }

    fn layer_tensors(&self, layer: usize, tensors: &mut Vec<(String, Vec<usize>)>) {
        let (hidden, mlp, dim) = (self.hidden, self.mlp, self.head_dim);
        let (queries, keys) = (self.heads * dim, self.heads_kv * dim);
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("self_attn.q_proj", &[queries, hidden]);
        add("self_attn.k_proj", &[keys, hidden]);
        add("self_attn.v_proj", &[keys, hidden]);
        add("self_attn.o_proj", &[hidden, queries]);
        if self.qk_norm {
            add("self_attn.q_norm", &[dim]);
            add("self_attn.k_norm", &[dim]);
        }
        add("post_attention_layernorm", &[hidden]);
        if self.post_norms {
            add("pre_feedforward_layernorm", &[hidden]);
            add("post_feedforward_layernorm", &[hidden]);
        }
        add("mlp.gate_proj", &[mlp, hidden]);
        add("mlp.up_proj", &[mlp, hidden]);
        add("mlp.down_proj", &[hidden, mlp]);
        let mut bias = |here: bool, name: &str, len: usize| {
            if here {
                tensors.push((format!("model.layers.{layer}.{name}.bias"), vec![len]));
            }
        };
        bias(self.biases.qkv, "self_attn.q_proj", queries);
        bias(self.biases.qkv, "self_attn.k_proj", keys);
        bias(self.biases.qkv, "self_attn.v_proj", keys);
        bias(self.biases.output, "self_attn.o_proj", hidden);
        bias(self.biases.mlp, "mlp.gate_proj", mlp);
        bias(self.biases.mlp, "mlp.up_proj", mlp);
        bias(self.biases.mlp, "mlp.down_proj", hidden);
    }
}
