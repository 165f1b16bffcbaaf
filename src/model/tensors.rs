//! Safetensors files: headers are checked before memory is allocated, and one tensor is in memory at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use half::{bf16, f16};
use safetensors::tensor::{Dtype as Stored, Metadata, TensorInfo};

use crate::error::{Error, Result};

/// Maximum header size in bytes; the header of a model of 1000 tensors takes about 0.1 MB.
const MAX_HEADER: u64 = 100 << 20;

/// Number format of stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE half precision.
    F16,
    /// bfloat16, the upper half of an f32.
    Bf16,
    /// Single precision.
    F32,
}

impl Dtype {
    const NAMES: [(Self, &str, Stored); 3] = [
        (Self::F16, "float16", Stored::F16),
        (Self::Bf16, "bfloat16", Stored::BF16),
        (Self::F32, "float32", Stored::F32),
    ];

    /// Return the format with this name in `config.json`.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known, _)| *known == name).map(|(dtype, ..)| *dtype)
    }

    /// Return the name in `config.json`.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// Return the bytes per element.
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn of(stored: Stored) -> Option<Self> {
        Self::NAMES.iter().find(|(.., known)| *known == stored).map(|(dtype, ..)| *dtype)
    }

    fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F16 => out.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
            Self::Bf16 => out.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
            Self::F32 => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self {
            Self::F16 => halves().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Self::Bf16 => halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            Self::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    }
}

/// An open safetensors file with a valid header.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    /// Offset of the data in the file.
    start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    /// Open a file and check its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        let broken = |what: String| {
            Error::file(path, format!("incomplete or damaged safetensors file ({what}); copy or download it again"))
        };
        if size < 8 {
            return Err(broken(format!("{size} bytes")));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(Error::io(path))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > size - 8 {
            return Err(broken(format!("header of {length} bytes in a file of {size} bytes")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(Error::io(path))?;
        // Parsing checks that each shape fits its offsets and that the offsets leave no gap.
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| broken(error.to_string()))?;
        let (start, data) = (8 + length, metadata.data_len() as u64);
        if start + data != size {
            return Err(broken(format!("the header declares {data} bytes of data, but the file has {}", size - start)));
        }
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(Self { path: path.to_path_buf(), file, start, tensors })
    }

    /// Iterate over the tensor names in alphabetical order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Return a tensor's shape and format; the format's name as the error if it is unsupported.
    pub(crate) fn info(&self, name: &str) -> Option<(&[usize], std::result::Result<Dtype, String>)> {
        let info = self.tensors.get(name)?;
        Some((&info.shape, Dtype::of(info.dtype).ok_or_else(|| format!("{:?}", info.dtype))))
    }

    /// Read the values of one tensor.
    ///
    /// # Errors
    /// When there is no tensor of that name in a supported format, or the file cannot be read.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<f32>> {
        let unusable = || Error::file(&self.path, format!("has no tensor {name} of type F32, BF16 or F16"));
        let info = self.tensors.get(name).ok_or_else(unusable)?;
        let dtype = Dtype::of(info.dtype).ok_or_else(unusable)?;
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.start + from as u64)).map_err(Error::io(&self.path))?;
        file.read_exact(&mut bytes).map_err(Error::io(&self.path))?;
        Ok(dtype.decode(&bytes))
    }
}

/// A tensor to write; its values are fetched when it is written.
pub(crate) struct TensorEntry {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// Whether it is written in f32, whatever the format of the others.
    pub(crate) exact: bool,
    pub(crate) values: Box<dyn Fn() -> TensorData>,
}

impl TensorEntry {
    /// Return its size in bytes when written in the given format.
    pub(crate) fn bytes(&self, dtype: Dtype) -> usize {
        self.shape.iter().product::<usize>() * self.stored(dtype).bytes()
    }

    /// Return the format it is written in when the others use `dtype`.
    fn stored(&self, dtype: Dtype) -> Dtype {
        if self.exact { Dtype::F32 } else { dtype }
    }
}

/// Write f32 tensors in the given format.
///
/// # Errors
/// When the file cannot be written (a full disk, for instance).
pub(crate) fn write(path: &Path, dtype: Dtype, entries: &[TensorEntry]) -> Result<()> {
    let mut offset = 0;
    let describe = |entry: &TensorEntry| {
        let data_offsets = (offset, offset + entry.bytes(dtype));
        offset = data_offsets.1;
        let stored = Dtype::NAMES[entry.stored(dtype) as usize].2;
        (entry.name.clone(), TensorInfo { dtype: stored, shape: entry.shape.clone(), data_offsets })
    };
    // transformers requires the name of the framework whose layout this is.
    let format = Some([("format".to_string(), "pt".to_string())].into());
    let metadata = Metadata::new(format, entries.iter().map(describe).collect());
    let metadata = metadata.unwrap_or_else(|error| unreachable!("offsets follow from the shapes: {error}"));
    let mut header = serde_json::to_vec(&metadata).unwrap_or_else(|error| unreachable!("{error}"));
    header.resize(header.len().next_multiple_of(8), b' ');
    let attempt = || -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut bytes = Vec::new();
        for entry in entries {
            let values: Vec<f32> = (entry.values)().try_into_vec().unwrap_or_else(|error| panic!("not f32: {error:?}"));
            bytes.clear();
            entry.stored(dtype).encode(&values, &mut bytes);
            out.write_all(&bytes)?;
        }
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    attempt().map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, values: Vec<f32>) -> TensorEntry {
        let data = TensorData::from(values.as_slice());
        let shape = vec![values.len()];
        TensorEntry { name: name.to_string(), shape, exact: false, values: Box::new(move || data.clone()) }
    }

    #[test]
    fn every_precision_keeps_the_numbers_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let values = vec![0.0, -1.5, 0.25, 65504.0, f32::INFINITY];
        for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
            write(&path, dtype, &[entry("odd", vec![1.0; 3]), entry("values", values.clone())]).unwrap();
            let file = TensorFile::open(&path).unwrap();
            let read = file.read("values").unwrap();
            // bf16 has eight bits of mantissa: 65504 becomes 65536.
            let expected =
                if dtype == Dtype::Bf16 { [&values[..3], &[65536.0, f32::INFINITY]].concat() } else { values.clone() };
            assert_eq!((read, file.info("values").unwrap().1), (expected, Ok(dtype)));
        }
    }

    #[test]
    fn a_header_that_promises_more_than_the_file_has_is_refused_before_memory_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let header = r#"{"x": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}"#;
        for (length, needle) in [(header.len() as u64, "declares 4000000000000 bytes"), (u64::MAX, "header of")] {
            std::fs::write(&path, [&length.to_le_bytes(), header.as_bytes(), &[0; 8]].concat()).unwrap();
            let error = TensorFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
        let overflow = r#"{"x": {"dtype": "F32", "shape": [9223372036854775807, 4], "data_offsets": [0, 8]}}"#;
        std::fs::write(&path, [&(overflow.len() as u64).to_le_bytes(), overflow.as_bytes(), &[0; 8]].concat()).unwrap();
        assert!(TensorFile::open(&path).unwrap_err().to_string().contains("incomplete or damaged safetensors file"));
    }
}
