use std::path::Path;

use super::*;

fn put(into: &Path, format: WriteFormat) -> Result<WrittenAdapter> {
    write(&adapter("tiny-llama-lora-qv-last2"), format, Some(&base("tiny-llama")), into)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn each_format_has_its_files_and_nothing_else_is_left() {
    let folder = TempDir::new().unwrap();
    for (format, files) in [
        (WriteFormat::Peft, &["adapter_config.json", "adapter_model.safetensors"][..]),
        (WriteFormat::MlxLm, &["adapter_config.json", "adapters.safetensors"]),
        (WriteFormat::Gguf, &["adapter.gguf"]),
    ] {
        let into = folder.path().join("new/deep").join(format.as_str());
        let written = put(&into, format).unwrap();
        assert_eq!(names(&into), files);
        assert_eq!(written.files, files.iter().map(|name| into.join(name)).collect::<Vec<_>>());
    }
    assert_eq!(names(&folder.path().join("new/deep")), ["gguf", "mlx-lm", "peft"]);
}

#[test]
fn an_empty_folder_is_filled_and_whatever_else_is_there_stays() {
    let folder = TempDir::new().unwrap();
    let (empty, full, file) = (folder.path().join("empty"), folder.path().join("full"), folder.path().join("x.gguf"));
    fs::create_dir(&empty).unwrap();
    put(&empty, WriteFormat::Peft).unwrap();
    assert_eq!(names(&empty), ["adapter_config.json", "adapter_model.safetensors"]);
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine"), "mine").unwrap();
    fs::write(&file, "mine").unwrap();
    for (into, format) in [(&full, WriteFormat::Peft), (&file, WriteFormat::Gguf), (&file, WriteFormat::MlxLm)] {
        let error = put(into, format).unwrap_err();
        assert_eq!(error.code(), "io");
        assert!(
            error.to_string().contains(&into.display().to_string()) && error.to_string().contains("new one"),
            "{error}"
        );
    }
    assert_eq!((names(&full), fs::read_to_string(&file).unwrap()), (vec!["mine".to_owned()], "mine".to_owned()));
    assert_eq!(names(folder.path()), ["empty", "full", "x.gguf"]);
}

#[test]
fn what_appears_meanwhile_is_not_written_over_and_nothing_half_written_is_left() {
    let folder = TempDir::new().unwrap();
    let (adapter, info) = (adapter("tiny-llama-lora-qv-last2"), base("tiny-llama"));
    let files = super::super::peft::files(&adapter).unwrap();
    let into = folder.path().join("into");
    fs::create_dir(&into).unwrap();
    fs::write(into.join("theirs"), "theirs").unwrap();
    assert_eq!(super::super::folder::publish(&files, &into).unwrap_err().code(), "io");
    let files = super::super::gguf::files(&adapter, &Some(order::Described::of(&info))).unwrap();
    let file = folder.path().join("x.gguf");
    fs::write(&file, "theirs").unwrap();
    assert_eq!(super::super::folder::publish_file(&files, &file).unwrap_err().code(), "io");
    assert_eq!((names(folder.path()), names(&into)), (vec!["into".into(), "x.gguf".into()], vec!["theirs".into()]));
    assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
    // A file where a folder is needed.
    let error = put(&file.join("below"), WriteFormat::Peft).unwrap_err();
    assert!(error.to_string().contains("x.gguf"), "{error}");
}

#[cfg(unix)]
#[test]
fn permissions_follow_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let plain = folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for format in WriteFormat::ALL {
        for file in put(&folder.path().join(format.as_str()), format).unwrap().files {
            assert_eq!(mode(&file), mode(&plain), "{}", file.display());
        }
    }
}
