use serde::Deserialize;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TestSettings {
    seed: u64,
    device: String,
    optim: Optim,
    stages: Vec<TestStage>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Optim {
    learning_rate: f64,
    warmup_steps: usize,
    schedule: Schedule,
}

impl Default for Optim {
    fn default() -> Self {
        Self { learning_rate: 1e-6, warmup_steps: 10, schedule: Schedule::Constant }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Schedule {
    Constant,
    Cosine { floor: f64 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TestStage {
    temperature: f32,
    clip: Option<f32>,
}

impl Default for TestStage {
    fn default() -> Self {
        Self { temperature: 1.0, clip: None }
    }
}

impl Settings for TestSettings {
    fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.optim.learning_rate <= 0.0 {
            problems.push(format!("optim.learning_rate = {}: must be positive", self.optim.learning_rate));
        }
        if self.seed == 13 {
            problems.push("seed = 13: choose another".into());
        }
        problems
    }
}

/// Settings whose default already has stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Preset {
    stages: Vec<TestStage>,
}

impl Default for Preset {
    fn default() -> Self {
        Self { stages: vec![TestStage { temperature: 0.7, clip: Some(0.2) }, TestStage::default()] }
    }
}

impl Settings for Preset {
    fn validate(&self) -> Vec<String> {
        Vec::new()
    }
}

const FILE: &str = "seed = 3\n\n[optim]\nlearning_rate = 2e-5\nschedule = { cosine = { floor = 0.1 } }\n\n\
                    [[stages]]\ntemperature = 0.5\n\n[[stages]]\ntemperature = 0.25\n";

fn read(text: &str, sets: &[&str]) -> std::result::Result<TestSettings, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.toml");
    std::fs::write(&file, text).unwrap();
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    let folder = format!("{}/", dir.path().display());
    load(Some(&file), &sets).map_err(|e| e.to_string().replace(&folder, ""))
}

#[test]
fn defaults_then_file_then_sets() {
    assert_eq!(load::<TestSettings>(None, &[]).unwrap(), TestSettings::default());
    let file = read(FILE, &[]).unwrap();
    assert_eq!((file.seed, file.optim.learning_rate, file.optim.warmup_steps), (3, 2e-5, 10));
    assert_eq!(file.optim.schedule, Schedule::Cosine { floor: 0.1 });
    let sets = [
        "device=cuda",
        "seed = 4",
        "seed=5",
        "optim.learning_rate=1",
        "optim.schedule=constant",
        "stages.1.temperature=1.5",
        "stages.0.clip=0.2",
    ];
    let set = read(FILE, &sets).unwrap();
    assert_eq!((set.seed, set.device.as_str(), set.optim.learning_rate), (5, "cuda", 1.0));
    assert_eq!(set.optim.schedule, Schedule::Constant);
    assert_eq!(set.stages[0], TestStage { temperature: 0.5, clip: Some(0.2) });
    assert_eq!(set.stages[1].temperature, 1.5);
    let whole = load::<TestSettings>(None, &["optim={ warmup_steps = 7 }".into(), "stages=[{}, {}]".into()]).unwrap();
    assert_eq!((whole.optim.warmup_steps, whole.stages.len()), (7, 2));
    let text = load::<TestSettings>(None, &["device=two words, 1 = \"x\"\ny = 2".into()]).unwrap();
    assert_eq!(text.device, "two words, 1 = \"x\"\ny = 2");
}

#[test]
fn arrays_of_the_defaults_can_be_changed_by_number() {
    let preset: Preset = load(None, &["stages.1.temperature=1.2".into()]).unwrap();
    assert_eq!(preset.stages, [Preset::default().stages[0].clone(), TestStage { temperature: 1.2, clip: None }]);
    let error = load::<Preset>(None, &["stages.2.temperature=1.2".into()]).unwrap_err().to_string();
    assert!(error.contains("stages has 2 entries") && error.contains("no stages.2"), "{error}");
}

#[test]
fn unknown_keys_name_place_path_and_the_nearest_name() {
    let table = [
        ("sed = 1", "x.toml:1: unknown key sed; did you mean seed?"),
        (
            "seed = 1\n[optim]\nlearning_rat = 1",
            "x.toml:3: unknown key optim.learning_rat; did you mean learning_rate?",
        ),
        ("optim.learning_rat = 1", "x.toml:1: unknown key optim.learning_rat; did you mean learning_rate?"),
        (
            "[[stages]]\n[[stages]]\ntemprature = 1",
            "x.toml:3: unknown key stages.1.temprature; did you mean temperature?",
        ),
        ("[stage]\nx = 1", "x.toml:1: unknown key stage; did you mean stages?"),
        ("\nzzz = 1", "x.toml:2: unknown key zzz; expected one of seed, device, optim, stages"),
    ];
    for (text, want) in table {
        assert_eq!(read(text, &[]).unwrap_err(), want);
    }
    let want = "--set optim.learning_rat=1: unknown key optim.learning_rat; did you mean learning_rate?";
    assert_eq!(read(FILE, &["seed=4", "optim.learning_rat=1"]).unwrap_err(), want);
    assert_eq!(load::<TestSettings>(None, &["optim.learning_rat=1".into()]).unwrap_err().to_string(), want);
    let want = "--set stages.0.temp=1: unknown key stages.0.temp; expected one of temperature, clip";
    assert_eq!(read(FILE, &["stages.0.temp=1"]).unwrap_err(), want);
}

#[test]
fn wrong_types_name_key_value_and_what_was_expected() {
    let table = [
        (
            "[optim]\nlearning_rate = \"fast\"",
            "x.toml:2: optim.learning_rate = \"fast\": expected a number, got string \"fast\"",
        ),
        ("seed = -1", "x.toml:1: seed = -1: expected a non-negative integer, got integer `-1`"),
        (
            "[[stages]]\ntemperature = true",
            "x.toml:2: stages.0.temperature = true: expected a number, got boolean `true`",
        ),
        ("[optim]\nschedule = \"cosin\"", "x.toml:2: optim.schedule = \"cosin\": did you mean cosine?"),
        ("optim = 3", "x.toml:1: optim = 3: expected a table, got integer `3`"),
        // Regression: a run with such a seed trained to its end, and no report could be written.
        ("seed = 18446744073709551615", "x.toml:1: seed = 18446744073709551615: must be at most 9223372036854775807"),
    ];
    for (text, want) in table {
        assert_eq!(read(text, &[]).unwrap_err(), want);
    }
    assert_eq!(read("seed = 9223372036854775807", &[]).unwrap().seed, i64::MAX as u64);
    let want = "--set optim.warmup_steps=1.5: optim.warmup_steps = 1.5: expected a non-negative integer, got floating \
        point `1.5`";
    assert_eq!(read(FILE, &["optim.warmup_steps=1.5"]).unwrap_err(), want);
}

#[test]
fn all_mistakes_are_told_at_once() {
    let error = read("sed = 1\nseed = 2\n[optim]\nlearning_rate = \"x\"\nwarmup = 3", &["devise=cuda"]).unwrap_err();
    for want in [
        "unknown key sed",
        "x.toml:4: optim.learning_rate",
        "x.toml:5: unknown key optim.warmup",
        "--set devise=cuda: ",
    ] {
        assert!(error.contains(want), "{want}: {error}");
    }
    let error = read("seed = 13\noptim.learning_rate = 0", &[]).unwrap_err();
    assert_eq!(error, "x.toml:2: optim.learning_rate = 0: must be positive\n  x.toml:1: seed = 13: choose another");
}

#[test]
fn what_cannot_be_read_is_said() {
    assert!(read("seed = \n", &[]).unwrap_err().starts_with("x.toml:1: "));
    assert!(read("seed = 1\nseed = 2", &[]).unwrap_err().starts_with("x.toml:2: "));
    let missing = load::<TestSettings>(Some(Path::new("no/such.toml")), &[]).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }) && missing.to_string().starts_with("no/such.toml: "), "{missing}");
    for (set, want) in [
        ("seed", "--set seed: expected section.key=value"),
        ("=1", "\"\" is not a key"),
        ("optim..x=1", "is not a key"),
        ("seed.x=1", "seed is a single value and has no keys"),
    ] {
        let error = read(FILE, &[set]).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn the_dump_reads_back() {
    let settings = read(FILE, &["device=it's \"new\"", "stages.0.clip=0.2"]).unwrap();
    assert_eq!(read(&to_toml(&settings), &[]).unwrap(), settings);
    assert_eq!(read(&to_toml(&TestSettings::default()), &[]).unwrap(), TestSettings::default());
    let large = read("", &["seed=9223372036854775807"]).unwrap();
    assert_eq!(read(&to_toml(&large), &[]).unwrap(), large);
}

/// `--set name=2024` was read as an integer although the setting is a string, and `nan` as a number.
#[test]
fn a_setting_that_is_a_text_takes_any_value_of_set() {
    for value in ["2024", "nan", "true", "2024-07-26", "[1]", "1.5", "cuda"] {
        assert_eq!(read("", &[&format!("device={value}"), "seed=4"]).unwrap().device, value);
    }
    let error = read("device = 2024", &[]).unwrap_err();
    assert_eq!(error, "x.toml:1: device = 2024: expected a string, got integer `2024`");
}

#[test]
fn a_mistake_in_a_value_is_where_the_value_was_set() {
    let error = read("seed = 1\n", &["optim.learning_rate=0", "seed=13"]).unwrap_err();
    let want = "--set optim.learning_rate=0: optim.learning_rate = 0: must be positive\n  \
                --set seed=13: seed = 13: choose another";
    assert_eq!(error, want);
}

/// Load the last of `files`, all written to one folder.
fn read_files(files: &[(&str, &str)], sets: &[&str]) -> std::result::Result<TestSettings, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    let file = dir.path().join(files.last().unwrap().0);
    load(Some(&file), &sets).map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

#[test]
fn a_file_lies_over_its_base() {
    let files = [
        ("a.toml", "seed = 1\ndevice = \"cpu\"\noptim.learning_rate = 1e-3\n[[stages]]\n[[stages]]\nclip = 0.1\n"),
        ("in/b.toml", "base = \"../a.toml\"\nseed = 2\n[optim]\nwarmup_steps = 7\n"),
        ("in/c.toml", "base = \"b.toml\"\n[[stages]]\ntemperature = 0.5\n"),
    ];
    let found = read_files(&files, &["stages.0.clip=0.3"]).unwrap();
    assert_eq!((found.seed, found.device.as_str()), (2, "cpu"));
    assert_eq!((found.optim.learning_rate, found.optim.warmup_steps), (1e-3, 7));
    assert_eq!(found.stages, [TestStage { temperature: 0.5, clip: Some(0.3) }]);
    assert!(!to_toml(&found).contains("base"));
}

#[test]
fn a_mistake_below_is_in_the_file_it_is_in() {
    let table = [
        ("seed = 1\nsed = 2\n", "", "a.toml:2: unknown key sed; did you mean seed?"),
        ("seed = 1\n", "\nsed = 2\n", "b.toml:3: unknown key sed; did you mean seed?"),
        ("seed = 1\n[optim]\nwarmup = 2\n", "[optim]\nlearning_rate = 1\n", "a.toml:3: unknown key optim.warmup"),
        ("\nseed = 13\n", "", "a.toml:2: seed = 13: choose another"),
        ("seed = 1\n", "seed = 13\n", "b.toml:2: seed = 13: choose another"),
        ("seed = x\n", "", "a.toml:1: "),
    ];
    for (below, above, want) in table {
        let error =
            read_files(&[("a.toml", below), ("b.toml", &format!("base = \"a.toml\"\n{above}"))], &[]).unwrap_err();
        assert!(error.starts_with(want), "{error}");
    }
}

#[test]
fn a_base_that_leads_back_or_nowhere_is_refused() {
    let circle = [("a.toml", "base = \"b.toml\"\n"), ("b.toml", "seed = 1\nbase = \"a.toml\"\n")];
    let error = read_files(&circle, &[]).unwrap_err();
    assert!(error.starts_with("a.toml:1: base = \"b.toml\" is circular"), "{error}");
    let error = read_files(&[("b.toml", "\nbase = \"none.toml\"\n")], &[]).unwrap_err();
    assert_eq!(error, "b.toml:2: base = \"none.toml\": there is no file none.toml");
    let error = read_files(&[("b.toml", "base = 3\n")], &[]).unwrap_err();
    assert!(error.starts_with("b.toml:1: base: expected the name"), "{error}");
}

/// Settings with tables that have a `type`: the deserialiser buffers them and loses the positions within.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Tagged {
    kinds: Vec<Kind>,
    stages: Vec<One>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct One {
    kind: Option<Kind>,
    kinds: Vec<Kind>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Kind {
    Scaled { factor: f32, offset: f32 },
    Fixed {},
    Named { name: String },
}

impl Settings for Tagged {
    fn validate(&self) -> Vec<String> {
        Vec::new()
    }
}

#[test]
fn mistakes_in_a_tagged_table_name_their_key_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.toml");
    let read = |text: &str, sets: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let read = load::<Tagged>(Some(&file), &sets);
        read.map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
    };
    let two = "[[stages]]\n[[stages]]\nkinds = [{ type = \"fixed\" }, { type = \"named\", name = \"a\" }]\n";
    let table: [(&str, &[&str], &str); 14] = [
        (
            "[[kinds]]\ntype = \"scaled\"\nfactor = 1\nofset = 2\n",
            &[],
            "x.toml:4: unknown key kinds.0.ofset; did you mean offset?",
        ),
        (
            "[[kinds]]\ntype = \"scaled\"\nfactor = 1\noffset = \"far\"\n",
            &[],
            "x.toml:4: kinds.0.offset = \"far\": expected a number, got string \"far\"",
        ),
        ("[[kinds]]\ntype = \"scaled\"\nfactor = 1\n", &[], "x.toml:1: kinds.0: missing field `offset`"),
        (
            "[stages.0]\n",
            &[],
            "x.toml:1: stages: expected an array, got a table; an array of tables is written [[stages]]",
        ),
        (
            "[[stages]]\n[stages.kind]\nfactor = 1\n",
            &[],
            "x.toml:2: stages.0.kind: missing field `type`; give one of scaled, fixed, named",
        ),
        (
            "[[stages]]\nkind = { factor = 1 }\n",
            &[],
            "x.toml:2: stages.0.kind = { factor = 1 }: missing field `type`; give one of scaled, fixed, named",
        ),
        (
            "[[stages]]\nkinds = [{ type = \"fixed\" }, { factor = 1 }]\n",
            &[],
            "x.toml:2: stages.0.kinds.1 = { factor = 1 }: missing field `type`; give one of scaled, fixed, named",
        ),
        (
            two,
            &["stages.0.kind.factor=1"],
            "--set stages.0.kind.factor=1: stages.0.kind: missing field `type`; give one of scaled, fixed, named",
        ),
        (
            two,
            &["stages.1.kinds.0.name=b"],
            "--set stages.1.kinds.0.name=b: unknown key stages.1.kinds.0.name; this table has no keys",
        ),
        (
            two,
            &["stages.1.kinds.1.nane=b"],
            "--set stages.1.kinds.1.nane=b: unknown key stages.1.kinds.1.nane; did you mean name?",
        ),
        (
            two,
            &["stages.1.kinds.1.name=[1]", "stages.1.kinds.0.type=fixd"],
            "--set stages.1.kinds.0.type=fixd: stages.1.kinds.0.type = \"fixd\": did you mean fixed?",
        ),
        (
            "[[stages]]\nkinds = [{ type = \"fixed\" }, { type = \"named\", name = 1 }]\n",
            &[],
            "x.toml:2: stages.0.kinds.1.name = 1: expected a string, got integer `1`",
        ),
        (
            "[[stages]]\nkinds = [{ type = \"fixed\" }, { type = \"nam\" }]\n",
            &[],
            "x.toml:2: stages.0.kinds.1.type = \"nam\": did you mean named?",
        ),
        (
            "kinds = [\"fixed\"]\n",
            &[],
            "x.toml:1: kinds.0 = \"fixed\": expected a table, got string \"fixed\"; write { type = \"fixed\" }",
        ),
    ];
    for (text, sets, want) in table {
        assert_eq!(read(text, sets).unwrap_err(), want);
    }
    let found = read(two, &["stages.1.kinds.1.name=2024"]).unwrap();
    assert_eq!(found.stages[1].kinds[1], Kind::Named { name: "2024".to_string() });
}

/// Reading a pipe without a writer blocked forever.
#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe.toml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (path, want) in [(&*pipe, "is a pipe"), (dir.path(), "is a folder"), (Path::new("/dev/zero"), "or a device")] {
        let error = load::<TestSettings>(Some(path), &[]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: is a", path.display())) && error.contains(want), "{error}");
    }
}
