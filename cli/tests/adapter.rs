//! Adapters of GitHub releases: run, listed, updated, pinned, rolled back, locked and deleted by the program.

#![cfg(all(feature = "candle", feature = "github"))]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use llm_local_testkit::github::{GitHub, Release, Repository};

const REF: &str = "github:acme/lora";

/// A release with the pirate inside the program; `notes` makes its config another one.
fn release(tag: &str, notes: &str) -> Release {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/pirate");
    let config = fs::read_to_string(folder.join("adapter_config.json")).unwrap() + notes;
    let weights = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    Release::new(tag).with_file("adapter_config.json", config).with_file("adapter_model.safetensors", weights)
}

struct World {
    github: GitHub,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let repository = Repository::new("acme/lora").with_release(release("v1", ""));
        let github = GitHub::builder().with_repository(repository).start();
        Self { github, folder: tempfile::tempdir().unwrap() }
    }

    fn output(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_llm-local"));
        command.args(args).env("LLM_LOCAL_CACHE", self.folder.path().join("store"));
        command.env("GITHUB_API_URL", self.github.api_url()).env_remove("GITHUB_TOKEN").env_remove("GH_TOKEN");
        command.stdin(Stdio::null()).current_dir(self.folder.path()).output().unwrap()
    }

    /// Standard output and standard error of a run that succeeds.
    #[track_caller]
    fn run(&self, args: &[&str]) -> (String, String) {
        let output = self.output(args);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{args:?}: {out}{err}");
        (out, err)
    }

    /// Standard error of a run that fails.
    #[track_caller]
    fn fail(&self, args: &[&str]) -> String {
        let output = self.output(args);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {out}{err}");
        err
    }

    /// The answer to a prompt, and which adapter the statistics name.
    fn answer(&self, more: &[&str]) -> (String, String) {
        let args = [&["run", "--adapter", REF, "--max-tokens", "8", "Tell me a story."], more].concat();
        let (out, err) = self.run(&args);
        let with = err.lines().find_map(|line| line.strip_prefix("with ")).unwrap_or_else(|| panic!("{err}"));
        (out, with.to_owned())
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn an_adapter_of_a_release_runs_and_its_versions_are_kept() {
    let world = World::new();
    let (pirate, with) = world.answer(&[]);
    assert_eq!(with, "github:acme/lora at v1, weight 1");
    let (sample, _) = world.run(&["run", "--adapter", "sample", "--max-tokens", "8", "Tell me a story."]);
    assert_eq!(pirate, sample);

    world.github.publish("acme/lora", release("v2", " "));
    let (versions, _) = world.run(&["adapter", "versions", REF]);
    let lines: Vec<_> = versions.lines().collect();
    assert!(lines[0].starts_with("v2 ") && lines[0].ends_with("not on this machine"), "{versions}");
    assert!(lines[1].starts_with("v1 ") && lines[1].ends_with("current"), "{versions}");
    assert!(world.run(&["adapter", "update", REF]).1.contains("github:acme/lora is at v2"));
    assert_eq!(world.answer(&[]).1, "github:acme/lora at v2, weight 1");
    assert!(world.run(&["adapter", "rollback", REF]).1.contains("at v1 again"));
    assert_eq!(world.answer(&[]), (pirate, with));
    let (listed, _) = world.run(&["adapter", "list"]);
    assert!(listed.starts_with("github:acme/lora  rolled back\n"), "{listed}");
    assert_eq!(listed.lines().filter(|line| line.trim_start().starts_with('v')).count(), 2, "{listed}");

    assert!(world.run(&["adapter", "pin", REF, "v2"]).1.contains("pinned to v2"));
    assert!(world.fail(&["adapter", "update", REF]).contains("it is pinned to v2; unpin it first"));
    assert!(world.run(&["adapter", "unpin", REF]).1.contains("is not pinned"));
    assert!(world.run(&["adapter", "rm", REF, "v1"]).1.contains("freed"));
    let (report, _) = world.run(&["adapter", "inspect", REF]);
    assert!(report.contains("format   PEFT") && report.contains("at v2"), "{report}");
    assert!(world.run(&["adapter", "rm", REF]).1.contains("freed"));
    assert!(!world.run(&["adapter", "list"]).0.contains("acme"));
}

#[test]
fn a_revision_as_it_is_listed_is_one_to_pin_and_to_delete() {
    let world = World::new();
    let mine = world.folder.path().join("mine");
    fs::create_dir(&mine).unwrap();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/pirate");
    let place = |notes: &str| {
        let config = fs::read_to_string(sample.join("adapter_config.json")).unwrap() + notes;
        fs::write(mine.join("adapter_config.json"), config).unwrap();
        fs::copy(sample.join("adapter_model.safetensors"), mine.join("adapter_model.safetensors")).unwrap();
    };
    for notes in ["", " "] {
        place(notes);
        world.run(&["adapter", "update", "./mine"]);
    }
    let revisions = |text: String| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("- "));
        lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    };
    let listed = revisions(world.run(&["adapter", "list"]).0);
    assert_eq!(listed.len(), 2);
    let mut versions = revisions(world.run(&["adapter", "versions", "./mine"]).0);
    versions.sort();
    assert_eq!(versions, {
        let mut sorted = listed.clone();
        sorted.sort();
        sorted
    });
    for revision in &listed {
        assert!(world.run(&["adapter", "pin", "./mine", revision]).1.contains(&format!("pinned to {revision}")));
    }
    world.run(&["adapter", "unpin", "./mine"]);
    for revision in &listed {
        assert!(world.run(&["adapter", "rm", "./mine", revision]).1.contains("freed"));
    }
    assert!(revisions(world.run(&["adapter", "list"]).0).is_empty());
}

#[test]
fn what_is_said_of_all_versions_names_none() {
    let world = World::new();
    world.github.publish("acme/lora", release("v2", " "));
    world.run(&["pull", "--adapter", "github:acme/lora@v1"]);
    assert!(world.run(&["adapter", "list"]).0.starts_with("github:acme/lora\n"));
    let said = |args: &[&str]| world.run(&[&["adapter"], args].concat()).1;
    assert!(said(&["update", REF]).contains("github:acme/lora is at v2"));
    assert!(said(&["rollback", "github:acme/lora@v2"]).contains("github:acme/lora is at v1 again"));
    assert!(said(&["pin", "github:acme/lora@v1", "v2"]).contains("github:acme/lora is pinned to v2"));
    assert!(said(&["unpin", "github:acme/lora@v1"]).contains("github:acme/lora is not pinned"));
}

#[test]
fn a_lock_file_holds_a_run_to_its_bytes() {
    let world = World::new();
    let lock = ["--lock", "my.lock"];
    world.run(&["lock", "--adapter", REF, "--output", "my.lock"]);
    let (first, _) = world.answer(&lock);
    world.github.publish("acme/lora", release("v2", " "));
    assert_eq!(world.answer(&lock), (first, "github:acme/lora at v1, weight 1".to_owned()));
    let (plan, _) = world.run(&["plan", "--adapter", REF, "--lock", "my.lock"]);
    assert!(plan.contains("at v1 (") && plan.contains("; locked"), "{plan}");
    assert!(
        world.run(&["pull", "--lock", "my.lock"]).1.contains("github:acme/lora is on this machine, as it was locked")
    );
    assert!(world.fail(&["run", "--adapter", "sample", "--lock", "my.lock", "x"]).contains("it is not in the lock"));
    assert!(world.fail(&["run", "--lock", "none.lock", "x"]).contains("none.lock"));
}

#[test]
fn what_is_wrong_is_said() {
    let world = World::new();
    for (args, part) in [
        (&["adapter", "update", "github:acme"][..], "github:owner/repo"),
        (&["adapter", "rollback", REF], "an earlier version of github:acme/lora"),
        (&["adapter", "rm", REF], "no version of it is kept"),
        (&["adapter", "inspect", "hf:%"], "a `%` must be written"),
    ] {
        let error = world.fail(args);
        assert!(error.starts_with("error: adapter ") && error.contains(part), "{args:?}: {error}");
    }
}
