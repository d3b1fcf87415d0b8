use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result};

/// Bytes that are read by range: a file, which stays on disk, or memory. Cheap to clone.
#[derive(Clone)]
pub struct Blob {
    name: Arc<str>,
    len: u64,
    bytes: Bytes,
}

#[derive(Clone)]
enum Bytes {
    // Reading at an offset without the lock needs another call on each system.
    File(Arc<Mutex<File>>),
    Memory(Arc<[u8]>),
}

impl Blob {
    /// Opens a file. Nothing of it is read yet.
    ///
    /// # Errors
    /// [`Error::Io`] where the system cannot open it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |error| Error::io(path, error);
        let file = File::open(path).map_err(io)?;
        let facts = file.metadata().map_err(io)?;
        if !facts.is_file() {
            return Err(Error::io(path, "not a file"));
        }
        let name = path.display().to_string().into();
        Ok(Self { name, len: facts.len(), bytes: Bytes::File(Arc::new(Mutex::new(file))) })
    }

    /// Bytes in memory; `name` is for messages.
    pub fn from_bytes(name: &str, bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self { name: name.into(), len: bytes.len() as u64, bytes: Bytes::Memory(bytes) }
    }

    /// Where the bytes come from, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `to` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Format`] where the range is not inside; [`Error::Io`] where reading fails.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.check(offset, to.len() as u64)?;
        match &self.bytes {
            Bytes::Memory(bytes) => {
                let start = offset as usize;
                to.copy_from_slice(&bytes[start..start + to.len()]);
                Ok(())
            }
            Bytes::File(file) => {
                // Whoever held the lock leaves nothing half done: each reader seeks first.
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let sought = file.seek(SeekFrom::Start(offset));
                sought
                    .and_then(|_| file.read_exact(to))
                    .map_err(|error| Error::io(&*self.name, error))
            }
        }
    }

    /// The `len` bytes from `offset` on. Nothing is allocated for a range that is not inside.
    ///
    /// # Errors
    /// As [`Blob::read`].
    pub fn bytes(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.check(offset, len)?;
        let len = usize::try_from(len).map_err(|_| self.outside(offset, len))?;
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len);
        if end.is_some_and(|end| end <= self.len) { Ok(()) } else { Err(self.outside(offset, len)) }
    }

    fn outside(&self, offset: u64, len: u64) -> Error {
        let at = format!("byte {offset}");
        Error::format(&self.name, at, format!("{len} bytes"), format!("a file of {}", self.len))
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob").field("name", &self.name).field("len", &self.len).finish()
    }
}
