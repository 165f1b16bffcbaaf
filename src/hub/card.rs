//! Dataset configurations declared in a dataset card: `configs` in the front matter of `README.md`, as the Hub uses it.
//!
//! Supports only the YAML used there: block mappings and lists, plain and quoted strings, lists in brackets.

/// Configuration declared in a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) name: String,
    pub(super) default: bool,
    /// Splits with the patterns of their files.
    pub(super) splits: Vec<(String, Vec<String>)>,
}

/// Return the configurations of a card; empty if it declares none.
///
/// # Errors
/// A line is not supported by this parser, or a configuration is incomplete.
pub(super) fn configs(readme: &str) -> Result<Vec<Config>, String> {
    let mut lines = readme.lines().skip_while(|line| line.trim().is_empty());
    if lines.next().map(str::trim_end) != Some("---") {
        return Ok(Vec::new());
    }
    let front = lines.take_while(|line| line.trim_end() != "---");
    // Only the block of `configs` is parsed: other keys may use any YAML.
    let block = front.skip_while(|line| line.trim_end() != "configs:").skip(1);
    let block = block.take_while(|line| line.trim().is_empty() || line.starts_with([' ', '-', '#']));
    let mut lines: Vec<(usize, &str)> = Vec::new();
    for line in block {
        let text = line.trim();
        if !text.is_empty() && !text.starts_with('#') {
            lines.push((line.len() - line.trim_start().len(), text));
        }
    }
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    match Yaml::block(&mut &lines[..], 0)? {
        Yaml::List(list) => list.into_iter().map(config).collect(),
        other => Err(format!("configs is not a list: {other:?}")),
    }
}

fn config(entry: Yaml) -> Result<Config, String> {
    let name = entry.text("config_name").ok_or("a configuration has no config_name")?.to_string();
    let default = entry.text("default") == Some("true");
    let data_files = entry.get("data_files").ok_or_else(|| format!("configuration {name} has no data_files"))?;
    let splits = match data_files {
        Yaml::List(list) if list.iter().all(|item| matches!(item, Yaml::Map(_))) => {
            let split = |item: &Yaml| {
                let split = item.text("split").ok_or("an entry of data_files has no split")?;
                let path = item.get("path").ok_or("an entry of data_files has no path")?;
                Ok((split.to_string(), path.texts()?))
            };
            list.iter().map(split).collect::<Result<_, String>>()?
        }
        Yaml::Map(entries) => {
            entries.iter().map(|(split, path)| Ok((split.clone(), path.texts()?))).collect::<Result<_, String>>()?
        }
        // Files without a split form the training split.
        paths => vec![("train".to_string(), paths.texts()?)],
    };
    Ok(Config { name, default, splits })
}

/// Node of a YAML document.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Yaml {
    Text(String),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

type YamlLines<'a, 'b> = &'a mut &'b [(usize, &'b str)];

impl Yaml {
    fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn text(&self, key: &str) -> Option<&str> {
        if let Some(Self::Text(text)) = self.get(key) { Some(text) } else { None }
    }

    /// Return a string or a list of strings as a list.
    fn texts(&self) -> Result<Vec<String>, String> {
        match self {
            Self::Text(text) => Ok(vec![text.clone()]),
            Self::List(list) => Ok(list.iter().map(Self::texts).collect::<Result<Vec<_>, _>>()?.concat()),
            Self::Map(_) => Err(format!("expected a path or a list of paths: {self:?}")),
        }
    }

    /// Parse the node at the start of `lines`; an empty string if it is indented by less than `least`.
    fn block(lines: YamlLines, least: usize) -> Result<Self, String> {
        let Some(&(indent, first)) = lines.first().filter(|(indent, _)| *indent >= least) else {
            return Ok(Self::Text(String::new()));
        };
        if first == "-" || first.starts_with("- ") { Self::list(lines, indent) } else { Self::map(lines, indent) }
    }

    fn list(lines: YamlLines, indent: usize) -> Result<Self, String> {
        let mut items = Vec::new();
        while let Some(&(own, line)) = lines.first().filter(|(own, line)| *own == indent && line.starts_with('-')) {
            let text = line[1..].trim_start();
            let inner = own + line.len() - text.len();
            if text.is_empty() {
                *lines = &lines[1..];
                items.push(Self::block(lines, indent + 1)?);
            } else if key(text).is_some() {
                // The item is a mapping whose first key is on the line of the dash.
                let mut rest: Vec<(usize, &str)> = lines.to_vec();
                rest[0] = (inner, text);
                let mut own = &rest[..];
                items.push(Self::map(&mut own, inner)?);
                *lines = &lines[rest.len() - own.len()..];
            } else {
                items.push(Self::scalar(text)?);
                *lines = &lines[1..];
            }
        }
        Ok(Self::List(items))
    }

    fn map(lines: YamlLines, indent: usize) -> Result<Self, String> {
        let mut entries = Vec::new();
        while let Some(&(own, line)) = lines.first().filter(|(own, _)| *own >= indent) {
            let Some((name, value)) = key(line).filter(|_| own == indent) else { return Err(unsupported(line)) };
            *lines = &lines[1..];
            let value = match (value, lines.first()) {
                // A list may have the same indentation as its key.
                ("", Some((own, line))) if *own == indent && line.starts_with('-') => Self::list(lines, indent)?,
                ("", _) => Self::block(lines, indent + 1)?,
                (text, _) => Self::scalar(text)?,
            };
            entries.push((name.to_string(), value));
        }
        Ok(Self::Map(entries))
    }

    fn scalar(text: &str) -> Result<Self, String> {
        if let Some(list) = text.strip_prefix('[') {
            let list = list.strip_suffix(']').ok_or_else(|| unsupported(text))?;
            let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
            return Ok(Self::List(items.map(Self::scalar).collect::<Result<_, _>>()?));
        }
        for quote in ['"', '\''] {
            if let Some(inner) = text.strip_prefix(quote) {
                let inner = inner.strip_suffix(quote).filter(|inner| !inner.contains([quote, '\\']));
                return inner.map(|inner| Self::Text(inner.to_string())).ok_or_else(|| unsupported(text));
            }
        }
        if text.starts_with(['{', '&', '|', '>', '!', '%', '@', '`', '*'])
            && !text.starts_with("**/")
            && !text.starts_with("*.")
        {
            return Err(unsupported(text));
        }
        Ok(Self::Text(text.split(" #").next().unwrap_or(text).trim_end().to_string()))
    }
}

fn unsupported(line: &str) -> String {
    format!("unsupported YAML syntax: {line}")
}

/// Split a line of a mapping into key and value.
fn key(line: &str) -> Option<(&str, &str)> {
    let (name, value) = match line.strip_suffix(':') {
        Some(name) => (name, ""),
        None => line.split_once(": ")?,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name = name.trim_matches(['"', '\'']);
    (!name.is_empty() && name.chars().all(plain)).then(|| (name, value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(front: &str) -> Vec<Config> {
        configs(&format!("---\nlicense: mit\n{front}tags:\n- x: [\n---\n# Title\nconfigs:\n")).unwrap()
    }

    fn made(name: &str, default: bool, splits: &[(&str, &[&str])]) -> Config {
        let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect();
        let splits = splits.iter().map(|(split, paths)| (split.to_string(), texts(paths))).collect();
        Config { name: name.to_string(), default, splits }
    }

    /// The forms used in published cards.
    #[test]
    fn configurations_are_read_in_their_usual_forms() {
        let main = made("main", false, &[("train", &["main/train-*"]), ("test", &["main/test-*"])]);
        let as_the_hub_writes_it = "configs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n  - \
                                    split: test\n    path: main/test-*\n";
        assert_eq!(read(as_the_hub_writes_it), std::slice::from_ref(&main));
        let by_hand = "configs:\n  # two splits\n  - config_name: \"main\"\n    data_files:\n      - split: train\n        path:\n          \
                       - main/train-*\n      - split: 'test'\n        path: [\"main/test-*\"]\n";
        assert_eq!(read(by_hand), [main]);
        let short = "configs:\n- config_name: a\n  default: true\n  data_files: a/*.jsonl\n- config_name: b\n  data_files:\n    test: b.jsonl\n";
        assert_eq!(
            read(short),
            [made("a", true, &[("train", &["a/*.jsonl"])]), made("b", false, &[("test", &["b.jsonl"])])]
        );
        assert_eq!(read("pretty_name: x\n"), []);
        assert_eq!(configs("# no front matter\nconfigs:\n- x\n").unwrap(), []);
    }

    #[test]
    fn what_is_beyond_the_reader_is_told() {
        for (front, want) in [
            ("configs:\n- config_name: a\n  data_files: {train: x}\n", "unsupported YAML syntax: {train: x}"),
            ("configs:\n- config_name: a\n  data_dir: a\n", "configuration a has no data_files"),
            ("configs:\n- data_files: a\n", "has no config_name"),
            ("configs:\n  a: b\n", "configs is not a list"),
        ] {
            let error = configs(&format!("---\n{front}---\n")).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
