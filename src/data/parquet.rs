//! Parquet files as JSON rows, nested columns included.

use std::fmt::Display;
use std::fs::File;
use std::path::Path;

use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::Value;

use crate::contain::contained;
use crate::error::{Error, Result};

/// Pass every row to `take`, with its location.
pub(super) fn rows(path: &Path, take: &mut dyn FnMut(String, Value) -> Result<()>) -> Result<()> {
    let file = File::open(path).map_err(Error::io(path))?;
    let broken = |e: ParquetError| {
        Error::file(path, format!("incomplete or damaged Parquet file ({e}); copy or download it again"))
    };
    // The library panics on some damaged files.
    let failed = || ParquetError::General("inconsistent metadata".to_string());
    let reader = contained(|| SerializedFileReader::new(file)).ok_or_else(failed).flatten().map_err(broken)?;
    for column in reader.metadata().row_groups().iter().flat_map(RowGroupMetaData::columns) {
        supported(path, column.compression())?;
    }
    let mut rows = contained(|| reader.get_row_iter(None)).ok_or_else(failed).flatten().map_err(broken)?;
    for number in 1.. {
        let Some(row) = contained(|| rows.next()).ok_or_else(failed).map_err(broken)? else { break };
        take(format!("{} row {number}", path.display()), object(&row.map_err(broken)?))?;
    }
    Ok(())
}

/// Check that a codec is part of the build.
fn supported(path: &Path, codec: Compression) -> Result<()> {
    match codec {
        Compression::BROTLI(_) | Compression::LZO => {
            let message = format!("compression {codec} is not supported; write the file with zstd or snappy");
            Err(Error::file(path, message))
        }
        _ => Ok(()),
    }
}

fn object(row: &Row) -> Value {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// Convert like the crate itself, but bytes that are UTF-8 become text, since older writers do not mark columns as
/// UTF-8, and a number of 32 or 16 bits keeps its decimal digits (0.1 is not 0.10000000149011612).
fn value(field: &Field) -> Value {
    match field {
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => field.to_json_value(),
        },
        Field::Float(number) => decimal(number),
        Field::Float16(number) => decimal(number),
        other => other.to_json_value(),
    }
}

/// Return the number with the shortest digits that name `number`; null for NaN and infinity.
fn decimal(number: &impl Display) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FloatType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::data::{Fields, Message, load_problems};

    /// Write the next column, with its definition and repetition levels.
    fn texts(
        group: &mut SerializedRowGroupWriter<'_, File>,
        values: &[&str],
        defined: Option<&[i16]>,
        repeated: Option<&[i16]>,
    ) {
        let values: Vec<ByteArray> = values.iter().map(|&text| text.into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, defined, repeated).unwrap();
        column.close().unwrap();
    }

    /// Two rows as verl writes them: a source, a list of messages, a struct with the answer, an index.
    #[test]
    fn rows_of_verl_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train.parquet");
        let schema = "message schema {
            OPTIONAL BYTE_ARRAY data_source (UTF8);
            OPTIONAL group prompt (LIST) { REPEATED group list { OPTIONAL group element {
                OPTIONAL BYTE_ARRAY content (UTF8); OPTIONAL BYTE_ARRAY role; } } }
            OPTIONAL group reward_model { OPTIONAL BYTE_ARRAY ground_truth (UTF8); }
            REQUIRED INT64 index;
        }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        texts(&mut group, &["math", "math"], Some(&[1, 1]), None);
        texts(&mut group, &["Be brief.", "2+3?", "4·5?"], Some(&[4, 4, 4]), Some(&[0, 1, 0]));
        texts(&mut group, &["system", "user", "user"], Some(&[4, 4, 4]), Some(&[0, 1, 0]));
        texts(&mut group, &["5", "20"], Some(&[2, 2]), None);
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[7, 8], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();

        let problems = load_problems(&path, &Fields::default()).unwrap();
        let messages = vec![Message::new("system", "Be brief."), Message::user("2+3?")];
        let turns: Vec<_> = problems.iter().map(|problem| problem.prompt.to_messages()).collect();
        assert_eq!(turns, [messages, vec![Message::user("4·5?")]]);
        let answers: Vec<_> = problems.iter().map(|p| (p.answer.as_str(), p.data_source.as_str())).collect();
        assert_eq!(answers, [("5", "math"), ("20", "math")]);
        assert_eq!(problems[1].extra["index"], 8);

        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let error = load_problems(&path, &Fields::default()).unwrap_err().to_string();
        assert!(error.contains("train.parquet: incomplete or damaged Parquet file"), "{error}");
    }

    /// An invalid row is named by its number; a whole number from a float column stays a whole number.
    #[test]
    fn rows_are_named_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sums.parquet");
        let schema = "message schema { REQUIRED BYTE_ARRAY question (UTF8); OPTIONAL DOUBLE answer; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let write = |defined: &[i16]| {
            let properties = Arc::new(WriterProperties::builder().build());
            let file = File::create(&path).unwrap();
            let mut writer = SerializedFileWriter::new(file, schema.clone(), properties).unwrap();
            let mut group = writer.next_row_group().unwrap();
            texts(&mut group, &["9·3?", "1/2?"], None, None);
            let mut column = group.next_column().unwrap().unwrap();
            let values = [27.0, 0.5];
            let present = defined.iter().filter(|&&level| level > 0).count();
            column.typed::<DoubleType>().write_batch(&values[..present], Some(defined), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
            writer.close().unwrap();
        };
        write(&[1, 1]);
        let problems = load_problems(&path, &Fields::default()).unwrap();
        assert_eq!(problems.iter().map(|p| p.answer.as_str()).collect::<Vec<_>>(), ["27", "0.5"]);
        write(&[1, 0]);
        let error = load_problems(&path, &Fields::default()).unwrap_err().to_string();
        assert!(error.contains("sums.parquet row 2: no answer"), "{error}");
    }

    /// Regression: the answer 0.1 in a column of 32-bit numbers was 0.10000000149011612, and 0.1 was wrong.
    #[test]
    fn numbers_of_32_bits_keep_their_digits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let schema = "message schema { REQUIRED BYTE_ARRAY prompt (UTF8); REQUIRED FLOAT answer; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        texts(&mut group, &["1/10?", "3·9?", "10^10?"], None, None);
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<FloatType>().write_batch(&[0.1, 27.0, 1e10], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let problems = load_problems(&path, &Fields::default()).unwrap();
        assert_eq!(problems.iter().map(|p| p.answer.as_str()).collect::<Vec<_>>(), ["0.1", "27", "10000000000"]);
        assert_eq!([decimal(&f32::NAN), decimal(&f32::INFINITY)], [Value::Null, Value::Null]);
    }

    /// A codec that is not in the build was once reported as a broken file.
    #[test]
    fn codecs_are_read_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        let schema = "message schema { REQUIRED BYTE_ARRAY prompt (UTF8); REQUIRED BYTE_ARRAY answer (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        for codec in
            [Compression::SNAPPY, Compression::GZIP(Default::default()), Compression::LZ4, Compression::LZ4_RAW]
        {
            let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
            let mut writer =
                SerializedFileWriter::new(File::create(&path).unwrap(), schema.clone(), properties).unwrap();
            let mut group = writer.next_row_group().unwrap();
            texts(&mut group, &["2+3?"], None, None);
            texts(&mut group, &["5"], None, None);
            group.close().unwrap();
            writer.close().unwrap();
            assert_eq!(load_problems(&path, &Fields::default()).unwrap()[0].answer, "5", "{codec}");
        }
        for codec in [Compression::BROTLI(Default::default()), Compression::LZO] {
            let error = supported(&path, codec).unwrap_err().to_string();
            assert!(error.ends_with("is not supported; write the file with zstd or snappy"), "{error}");
        }
    }
}
