use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{HostInputs, TensorFile};
use crate::{AttentionShape, Error, Mask, Result, dense};

/// Queries, keys and values of some layers of a real model, after position embedding.
///
/// The file has tensors `layer<L>.q` `[batch, heads, tokens, dim]`, `layer<L>.k` and `layer<L>.v`
/// `[batch, heads_kv, tokens, dim]` of any floating-point type, and under the metadata key `config`
/// a JSON object with `heads`, `heads_kv`, `dim`, `scale`, `causal` and the list `layers`. Where the
/// layers have one, also `window`, the keys that a query sees, itself included, and `soft_cap`, that
/// of the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Capture {
    config: dense::Config,
    layers: BTreeMap<usize, HostInputs>,
}

impl Capture {
    /// Reads all layers that the file lists.
    ///
    /// # Errors
    /// [`Error::File`] where the file cannot be read, is damaged, or does not hold what its
    /// configuration promises.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Capture::from_file(&TensorFile::read(path)?)
    }

    /// The same from a file in memory.
    ///
    /// # Errors
    /// [`Error::File`], as [`Capture::load`].
    pub fn from_file(file: &TensorFile) -> Result<Self> {
        let header = Header::of(file)?;
        let mut layers = BTreeMap::new();
        for &layer in &header.layers {
            layers.insert(layer, read_layer(file, &header, layer)?);
        }
        let mask = match (header.causal, header.window) {
            (_, Some(window)) => Mask::Window { left: window - 1, right: 0 },
            (true, None) => Mask::Causal,
            (false, None) => Mask::Full,
        };
        let mut config = dense::Config::new().with_mask(mask).with_scale(header.scale);
        if let Some(cap) = header.soft_cap {
            config = config.with_soft_cap(cap);
        }
        Ok(Capture { config, layers })
    }

    /// Mask, scale and soft-cap that the model uses.
    pub fn config(&self) -> &dense::Config {
        &self.config
    }

    /// Numbers of the layers, rising.
    pub fn layers(&self) -> impl Iterator<Item = usize> {
        self.layers.keys().copied()
    }

    /// Inputs of one layer.
    pub fn layer(&self, layer: usize) -> Option<&HostInputs> {
        self.layers.get(&layer)
    }

    /// The first `tokens` tokens of every layer (all where there are not as many).
    pub fn truncated(&self, tokens: usize) -> Self {
        let cut = |(&layer, inputs): (&usize, &HostInputs)| (layer, inputs.truncated(tokens));
        Capture { config: self.config.clone(), layers: self.layers.iter().map(cut).collect() }
    }
}

struct Header {
    heads: usize,
    heads_kv: usize,
    dim: usize,
    scale: f64,
    causal: bool,
    window: Option<usize>,
    soft_cap: Option<f64>,
    layers: Vec<usize>,
}

impl Header {
    fn of(file: &TensorFile) -> Result<Self> {
        let get = |key: &str| file.config().get(key).unwrap_or(&Value::Null);
        let bad = |key: &str, expected: &str| {
            let reason = format!("config has `{key}` = {}, expected {expected}", get(key));
            Error::file(file.path(), reason)
        };
        let integer = |value: &Value| value.as_u64().and_then(|x| usize::try_from(x).ok());
        let size = |key| integer(get(key)).ok_or_else(|| bad(key, "a size"));
        let causal = get("causal").as_bool();
        let optional = |key: &str| Some(get(key)).filter(|value| !value.is_null());
        let window = optional("window").map(|value| match integer(value) {
            Some(window) if window > 0 && causal == Some(true) => Ok(window),
            _ => Err(bad("window", "a size above 0 of causal layers")),
        });
        let soft_cap = optional("soft_cap").map(|value| match value.as_f64() {
            Some(cap) if cap > 0.0 => Ok(cap),
            _ => Err(bad("soft_cap", "a number above 0")),
        });
        let layers = get("layers").as_array().map(|list| list.iter().map(integer).collect());
        Ok(Header {
            heads: size("heads")?,
            heads_kv: size("heads_kv")?,
            dim: size("dim")?,
            scale: get("scale").as_f64().ok_or_else(|| bad("scale", "a number"))?,
            causal: causal.ok_or_else(|| bad("causal", "true or false"))?,
            window: window.transpose()?,
            soft_cap: soft_cap.transpose()?,
            layers: layers.flatten().ok_or_else(|| bad("layers", "a list of layer numbers"))?,
        })
    }
}

fn read_layer(file: &TensorFile, header: &Header, layer: usize) -> Result<HostInputs> {
    let names = ["q", "k", "v"].map(|tensor| format!("layer{layer}.{tensor}"));
    let bad = |reason: String| Error::file(file.path(), format!("layer {layer}: {reason}"));
    for name in &names {
        if !file.is_float(name)? {
            return Err(bad(format!("`{name}` does not hold floating-point numbers")));
        }
    }
    let [q, k, v] = &names;
    let shape = AttentionShape::from_shapes(file.shape(q)?, file.shape(k)?, file.shape(v)?)
        .map_err(|error| bad(error.to_string()))?;
    let promised = AttentionShape {
        heads: header.heads,
        heads_kv: header.heads_kv,
        queries: shape.keys,
        dim_qk: header.dim,
        dim_v: header.dim,
        ..shape
    };
    if shape != promised {
        return Err(bad(format!("tensors have {shape:?}, config promises {promised:?}")));
    }
    let read = |name| Ok(file.f32(name)?.into_raw_vec_and_offset().0);
    Ok(HostInputs { shape, q: read(q)?, k: read(k)?, v: read(v)?, sinks: None })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A capture of no layer, with a key of its configuration changed.
    fn with(key: &str, value: Value) -> Result<Capture> {
        let mut config = json!({
            "heads": 4, "heads_kv": 2, "dim": 3, "scale": 0.5, "causal": true, "layers": [],
        });
        config[key] = value;
        let header = json!({ "__metadata__": { "config": config.to_string() } }).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        Capture::from_file(&TensorFile::parse("capture.safetensors", &bytes)?)
    }

    #[test]
    fn windows_and_soft_caps_are_the_models() -> Result<()> {
        let causal = with("window", Value::Null)?.config().clone();
        assert_eq!((causal.mask.clone(), causal.soft_cap), (Mask::Causal, None));
        let window = with("window", json!(8))?;
        assert_eq!(window.config().mask, Mask::Window { left: 7, right: 0 });
        let capped = with("soft_cap", json!(50))?;
        assert_eq!(*capped.config(), causal.with_soft_cap(50.0));
        Ok(())
    }

    #[test]
    fn what_is_no_window_and_no_soft_cap_is_refused() {
        for (key, value, reason) in [
            ("window", json!(0), "`window` = 0, expected a size above 0 of causal layers"),
            ("window", json!(2.5), "`window` = 2.5, expected a size above 0"),
            ("soft_cap", json!(0.0), "`soft_cap` = 0.0, expected a number above 0"),
            ("soft_cap", json!("50"), "`soft_cap` = \"50\", expected a number"),
        ] {
            let error = with(key, value).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
