//! Bytes of small GGUF and safetensors files, right or wrong in every part.

/// A safetensors file; data follow each other without alignment.
pub fn safetensors(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] });
        header.insert((*name).into(), entry);
    }
    with_header(&serde_json::Value::Object(header).to_string(), &data)
}

pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A GGUF file in the making.
#[derive(Default, Clone)]
pub struct Gguf {
    pub keys: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub data: Vec<u8>,
}

pub fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

impl Gguf {
    pub fn raw(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.keys.push([&text(key.as_bytes())[..], &kind.to_le_bytes(), value].concat());
        self
    }

    pub fn string(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, 8, &text(value.as_bytes()))
    }

    pub fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn strings(&mut self, key: &str, values: &[&str]) -> &mut Self {
        let mut bytes = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|value| bytes.extend(text(value.as_bytes())));
        self.raw(key, 9, &bytes)
    }

    pub fn ints(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let mut bytes = [&5u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    /// An entry of the table with any contents. Dims in the file's order.
    pub fn entry(&mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> &mut Self {
        let mut entry = text(name.as_bytes());
        entry.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| entry.extend(dim.to_le_bytes()));
        entry.extend(kind.to_le_bytes());
        entry.extend(offset.to_le_bytes());
        self.tensors.push(entry);
        self
    }

    /// A tensor with its data behind the others. Shape in row-major order.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) -> &mut Self {
        let dims: Vec<u64> = shape.iter().rev().map(|n| *n as u64).collect();
        let offset = self.data.len() as u64;
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.entry(name, &dims, kind, offset)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.with_counts(self.tensors.len() as u64, self.keys.len() as u64)
    }

    pub fn with_counts(&self, tensors: u64, keys: u64) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        self.keys.iter().for_each(|key| bytes.extend(key));
        self.tensors.iter().for_each(|tensor| bytes.extend(tensor));
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }
}
