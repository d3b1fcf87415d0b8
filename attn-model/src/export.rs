//! Writing a model as a Hugging Face folder.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use attn_wgpu::DType;
use serde_json::{Map, Value, json};

use crate::{Error, Result, Source};

/// Bytes of a tensor that are converted at a time.
const PIECE: usize = 4 << 20;

/// How far an export is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The tensor that was written last.
    pub tensor: &'a str,
    /// Tensors that are written.
    pub done: usize,
    /// Tensors in all.
    pub total: usize,
}

/// Writes `config.json`, `model.safetensors` and, where the source has them, `tokenizer.json`,
/// `tokenizer_config.json` and the chat template into `folder`, which is made where it is missing.
/// Weights are written in `dtype`: f32, f16 or bf16. Memory holds a few MB of them at a time.
///
/// A tokenizer of a GGUF file that cannot be built is an error; weights are written before it.
///
/// # Errors
/// [`Error::Io`] where the system cannot write; [`Error::Unsupported`] where transformers has no keys
/// for the configuration; errors of reading the source.
pub fn export(
    source: &Source,
    folder: impl AsRef<Path>,
    dtype: DType,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<()> {
    let folder = folder.as_ref();
    let config = source.config.to_json(dtype)?;
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    write_json(&folder.join("config.json"), &config)?;
    weights(source, &folder.join("model.safetensors"), dtype, &mut progress)?;
    if let Some(tokenizer) = source.tokenizer()? {
        let path = folder.join("tokenizer.json");
        fs::write(&path, tokenizer.to_json()?).map_err(|error| Error::io(&path, error))?;
        write_json(&folder.join("tokenizer_config.json"), &tokenizer.config_json())?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).map_err(|error| Error::io(path, error))
}

/// The header of a safetensors file for tensors of one type in a row, padded to eight bytes.
fn header(tensors: &[(String, Vec<usize>)], dtype: DType) -> Result<Vec<u8>> {
    let name = match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        other => {
            let supported = "f32, f16 and bf16";
            return Err(Error::unsupported(
                "model.safetensors",
                "writing",
                other.name(),
                supported,
            ));
        }
    };
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut start = 0;
    for (tensor, shape) in tensors {
        let end = start + shape.iter().product::<usize>() * dtype.bytes();
        let entry = json!({ "dtype": name, "shape": shape, "data_offsets": [start, end] });
        header.insert(tensor.clone(), entry);
        start = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat())
}

fn weights(
    source: &Source,
    path: &Path,
    dtype: DType,
    progress: &mut impl FnMut(Progress<'_>),
) -> Result<()> {
    let tensors = source.config.tensors();
    let io = |error| Error::io(path, error);
    let mut file = BufWriter::new(File::create(path).map_err(io)?);
    file.write_all(&header(&tensors, dtype)?).map_err(io)?;
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let rows = shape.first().copied().unwrap_or(1);
        let width: usize = shape.iter().skip(1).product();
        // Vectors are one piece.
        let step = if shape.len() < 2 { rows } else { PIECE / (width * dtype.bytes()).max(1) };
        for start in (0..rows).step_by(step.max(1)) {
            let end = (start + step.max(1)).min(rows);
            let piece = source.weights.rows(name, shape, start..end, dtype)?;
            file.write_all(&piece.values.to_le_bytes()).map_err(io)?;
        }
        progress(Progress { tensor: name, done: i + 1, total: tensors.len() });
    }
    file.flush().map_err(io)
}
