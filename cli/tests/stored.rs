//! Models of a hub: pulled, listed, verified, run and deleted by the program.

#![cfg(all(feature = "candle", feature = "huggingface"))]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use llm_local_testkit::hub::{Fault, Hub, Repo};

fn hub() -> Hub {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/tiny-llama");
    let mut repo = Repo::new("org/tiny").with_license("mit");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (name, bytes) = (path.file_name().unwrap().to_str().unwrap(), fs::read(&path).unwrap());
        repo = if name.ends_with(".safetensors") { repo.with_lfs(name, bytes) } else { repo.with_file(name, bytes) };
    }
    Hub::builder().with_repo(repo).start()
}

fn command(hub: &Hub, folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-local"));
    command.args(args).env("LLM_LOCAL_CACHE", folder.join("store")).env("HF_HUB_CACHE", folder.join("hub"));
    command.env("HF_ENDPOINT", hub.endpoint()).env_remove("HF_TOKEN").env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_model_is_pulled_listed_verified_run_offline_and_deleted() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let run = |args: &[&str]| {
        let output = command(&hub, folder.path(), args).output().unwrap();
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{args:?}: {out}{err}");
        (out, err)
    };
    assert!(run(&["pull", "hf:org/tiny"]).1.contains("hf:org/tiny is on this machine"));
    let (listed, _) = run(&["list"]);
    assert!(listed.contains("hf:org/tiny") && listed.contains("mit") && !listed.contains("DAMAGED"), "{listed}");
    let (verified, _) = run(&["verify"]);
    assert_eq!(verified.lines().filter(|line| line.ends_with("intact")).count(), 5, "{verified}");

    hub.clear();
    // What is kept is judged without its source.
    assert!(run(&["doctor"]).0.contains("fits     hf:org/tiny: "));
    assert!(hub.requests().is_empty());
    let args = ["run", "--model", "hf:org/tiny", "--max-tokens", "4", "Once"];
    let offline = command(&hub, folder.path(), &args).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(offline.status.success() && !offline.stdout.is_empty(), "{:?}", texts(&offline));
    assert!(hub.requests().is_empty());

    assert!(run(&["rm", "hf:org/tiny"]).1.contains("freed"));
    assert!(!run(&["list"]).0.contains("org/tiny"));
    assert!(!folder.path().join("hub/models--org--tiny/blobs").exists());
}

#[test]
fn a_run_pulls_what_is_missing_and_draws_no_bar_where_nobody_looks() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let args = ["run", "--model", "hf:org/tiny", "--max-tokens", "4", "Once"];
    let output = command(&hub, folder.path(), &args).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success() && !out.is_empty(), "{out}{err}");
    assert_eq!(hub.requests_for("model.safetensors").iter().filter(|r| r.body_bytes_sent > 1_000_000).count(), 1);
    for text in [&out, &err] {
        assert!(!text.contains(['\r', '\u{1b}', '█', '░']), "{text:?}");
    }
}

#[test]
fn a_damaged_file_is_found_and_brought_anew() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let run = |args: &[&str]| command(&hub, folder.path(), args).output().unwrap();
    assert!(run(&["pull", "hf:org/tiny"]).status.success());
    let blobs = fs::read_dir(folder.path().join("hub/models--org--tiny/blobs")).unwrap();
    let largest = blobs.map(|e| e.unwrap().path()).max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&largest, bytes).unwrap();

    let verified = run(&["verify", "hf:org/tiny", "--repair"]);
    let (out, err) = texts(&verified);
    assert!(!verified.status.success() && out.contains("model.safetensors: DAMAGED: expected sha256:"), "{out}{err}");
    hub.clear();
    assert!(run(&["pull", "hf:org/tiny"]).status.success());
    assert!(run(&["verify"]).status.success());
    assert_eq!(hub.requests_for("config.json").len(), 0, "what was whole is not fetched again");
}

/// Bytes that the program has surely written of 1.2 MB that came: it collects 512 KiB before it writes, and writes those
/// while it collects the next.
#[cfg(unix)]
const WRITTEN: u64 = 512 << 10;

/// Interrupts a pull of the model once [`WRITTEN`] bytes are on disk.
#[cfg(unix)]
fn interrupt_a_pull(hub: &Hub, folder: &Path) {
    hub.fault(Fault::stall(1_200_000).path("model.safetensors").once());
    let mut child = command(hub, folder, &["pull", "hf:org/tiny"]).spawn().unwrap();
    hub.wait_until(|requests| requests.iter().any(|r| r.is_for("model.safetensors") && r.body_bytes_sent >= 1_200_000));
    // Until the program has written what it got.
    let data = || {
        let partials = fs::read_dir(folder.join("store/partials")).ok()?;
        partials.flatten().find_map(|entry| fs::metadata(entry.path().join("data")).ok())
    };
    while data().is_none_or(|data| std::os::unix::fs::MetadataExt::blocks(&data) * 512 < WRITTEN) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(130), "{out}{err}");
    assert!(err.contains("goes on where this one was"), "{err}");
    hub.clear();
}

#[cfg(unix)]
#[test]
fn an_interrupted_pull_goes_on_where_it_was() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    interrupt_a_pull(&hub, folder.path());
    let again = command(&hub, folder.path(), &["pull", "hf:org/tiny"]).output().unwrap();
    assert!(again.status.success(), "{:?}", texts(&again));
    let size = fs::metadata(Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/tiny-llama/model.safetensors")).unwrap();
    let fetched = hub.bytes_served_for("model.safetensors");
    assert!(fetched <= size.len() - WRITTEN, "{fetched} of {} bytes were fetched again", size.len());
}

#[cfg(unix)]
#[test]
fn what_an_interrupted_pull_left_is_listed_and_cleaned() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let run = |args: &[&str]| texts(&command(&hub, folder.path(), args).output().unwrap());
    assert!(run(&["clean"]).1.contains("unfinished downloads: 0 B freed"));
    interrupt_a_pull(&hub, folder.path());
    assert!(run(&["list"]).0.contains("of unfinished downloads"), "{:?}", run(&["list"]));
    let (_, kept) = run(&["clean"]);
    assert!(kept.contains(": 0 B freed") && kept.contains("--older-than 0"), "{kept}");
    assert!(folder.path().join("store/partials").read_dir().unwrap().count() > 0);
    let (_, freed) = run(&["clean", "--older-than", "0"]);
    assert!(freed.contains("freed") && !freed.contains(": 0 B freed"), "{freed}");
    assert_eq!(folder.path().join("store/partials").read_dir().unwrap().count(), 0);
    assert!(!run(&["list"]).0.contains("unfinished"), "{:?}", run(&["list"]));
}

#[test]
fn a_ref_that_names_nothing_is_answered_with_what_there_is() {
    let (hub, folder) = (hub(), tempfile::tempdir().unwrap());
    let run = |args: &[&str]| command(&hub, folder.path(), args).output().unwrap();
    let refused = |args: &[&str]| {
        let output = run(args);
        assert!(!output.status.success());
        texts(&output).1
    };
    for what in ["rm", "verify"] {
        assert!(refused(&[what, "hf:org/tiny"]).contains("nothing is kept here yet"));
    }
    assert!(run(&["pull", "hf:org/tiny"]).status.success());
    for what in ["rm", "verify"] {
        assert!(refused(&[what, "hf:org/tinny"]).contains("did you mean `hf:org/tiny`?"));
        assert!(refused(&[what, "org/tiny"]).contains("this store has `hf:org/tiny` at"));
    }
}

#[test]
fn what_is_not_there_and_what_is_gated_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let gated = Repo::new("org/gated").with_file("config.json", "{}").with_lfs("model.safetensors", vec![0; 64]);
    let hub = Hub::builder().with_repo(gated.gated(llm_local_testkit::hub::Gated::Manual)).start();
    for (reference, expected) in
        [("hf:org/missing", ["private", "HF_TOKEN"]), ("hf:org/gated", ["/org/gated", "HF_TOKEN"])]
    {
        let output = command(&hub, folder.path(), &["pull", reference]).output().unwrap();
        let (_, err) = texts(&output);
        assert!(!output.status.success() && expected.iter().all(|part| err.contains(part)), "{err}");
    }
}
