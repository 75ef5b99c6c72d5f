use std::path::Path;

use llm_local_core::lora::Floats;
use safetensors::SafeTensors;

use super::*;
use crate::{blocking::Wanted, lora::write::write_while_wanted};

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
    assert_eq!(super::super::folder::publish(&files, &into, &Wanted::new()).unwrap_err().code(), "io");
    let files = super::super::gguf::files(&adapter, &Some(order::Described::of(&info))).unwrap();
    let file = folder.path().join("x.gguf");
    fs::write(&file, "theirs").unwrap();
    assert_eq!(super::super::folder::publish_file(&files, &file, &Wanted::new()).unwrap_err().code(), "io");
    assert_eq!((names(folder.path()), names(&into)), (vec!["into".into(), "x.gguf".into()], vec!["theirs".into()]));
    assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
    // A file where a folder is needed.
    let error = put(&file.join("below"), WriteFormat::Peft).unwrap_err();
    assert!(error.to_string().contains("x.gguf"), "{error}");
}

#[test]
fn what_nobody_waits_for_any_more_is_not_there() {
    let folder = TempDir::new().unwrap();
    let (adapter, info) = (adapter("tiny-llama-lora-qv-last2"), base("tiny-llama"));
    let wanted = Wanted::new();
    wanted.give_up();
    for (name, format) in [("peft", WriteFormat::Peft), ("gguf", WriteFormat::Gguf), ("x.gguf", WriteFormat::Gguf)] {
        let into = folder.path().join(name);
        let error = write_while_wanted(&adapter, format, Some(&info), &into, &wanted).unwrap_err();
        assert_eq!((error.code(), names(folder.path())), ("cancelled", vec![]), "{name}");
        // Also once all tensors are written: safetensors without any do not look whether they are wanted.
        let files = super::super::peft::files(&adapter).unwrap();
        let files = super::super::files::Files { tensors: Vec::new(), ..files };
        let publish = if name == "x.gguf" { super::super::folder::publish_file } else { super::super::folder::publish };
        let error = publish(&files, &into, &wanted).unwrap_err();
        assert_eq!((error.code(), names(folder.path())), ("cancelled", vec![]), "{name}");
    }
}

#[test]
fn files_of_safetensors_are_to_the_byte_what_its_crate_writes() {
    let folder = TempDir::new().unwrap();
    let of = adapter("tiny-llama-lora-dora");
    for format in [WriteFormat::Peft, WriteFormat::MlxLm] {
        let into = folder.path().join(format.as_str());
        let mut adapter = of.clone();
        // Of two types.
        for module in &mut adapter.modules {
            module.a = Floats::F16(vec![0x3c00; module.a.len()]);
        }
        let written = write(&adapter, format, Some(&base("tiny-llama")), &into).unwrap();
        let bytes = fs::read(&written.files[1]).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let found: std::collections::BTreeSet<_> = tensors.iter().map(|(_, view)| view.dtype()).collect();
        assert_eq!(found.len(), 2, "{format}");
        let expected = safetensors::serialize(tensors, metadata.metadata().clone()).unwrap();
        assert!(bytes == expected, "{format}");
    }
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
