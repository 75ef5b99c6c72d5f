//! Chats to text, against transformers.

use llm_local_core::{Input, Message, Role, model::GgufValue};

use super::*;

fn render(pipeline: &TextPipeline, messages: &[Message]) -> llm_local_core::Result<String> {
    pipeline.template.render(messages)
}

/// A pipeline whose template is `template`.
fn with_template(template: &str) -> TextPipeline {
    from_files(&[
        ("tokenizer.json", word_tokenizer()),
        ("tokenizer_config.json", json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": null})),
        ("chat_template.jinja", json!(template)),
    ])
    .unwrap()
}

fn chats() -> [Vec<Message>; 3] {
    [
        vec![Message::user("What color is the sky?")],
        vec![Message::system("  Be brief.\n"), Message::user("abc 'b' \"x\"  ")],
        vec![Message::user("Hi"), Message::assistant("Hello."), Message::user(" é ")],
    ]
}

#[test]
fn tiny_llama_chats_are_those_of_transformers() {
    let pipeline = tiny_llama();
    assert!(pipeline.has_chat_template());
    let expected = [
        "<|im_start|>user\nWhat color is the sky?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\n  Be brief.\n<|im_end|>\n<|im_start|>user\nabc 'b' \"x\"  <|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n é <|im_end|>\n<|im_start|>assistant\n",
    ];
    for (chat, expected) in chats().iter().zip(expected) {
        assert_eq!(render(&pipeline, chat).unwrap(), expected);
    }
    // The reference's second prompt is this chat.
    let ids = pipeline.encode(&Input::Messages(chats()[0].clone())).unwrap();
    assert_eq!(ids, [1, 332, 202, 509, 646, 337, 263, 682, 34, 2, 202, 1, 334, 202]);
}

#[test]
fn smollm2_chats_from_gguf_metadata_are_those_of_transformers() {
    let pipeline = smollm2();
    let system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n";
    let expected = [
        format!("{system}<|im_start|>user\nWhat color is the sky?<|im_end|>\n<|im_start|>assistant\n"),
        "<|im_start|>system\n  Be brief.\n<|im_end|>\n<|im_start|>user\nabc 'b' \"x\"  <|im_end|>\n<|im_start|>assistant\n".into(),
        format!(
            "{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n é <|im_end|>\n<|im_start|>assistant\n"
        ),
    ];
    for (chat, expected) in chats().iter().zip(expected) {
        assert_eq!(render(&pipeline, chat).unwrap(), expected);
    }
}

#[test]
fn what_templates_use_of_jinja_and_python_renders_as_in_transformers() {
    let reference = read_json("tokenizers/chat_templates.json");
    let messages: Vec<Message> = serde_json::from_value(reference["messages"].clone()).unwrap();
    let templates = reference["templates"].as_array().unwrap();
    assert_eq!(templates.len(), 4);
    for case in templates {
        let pipeline = with_template(case["template"].as_str().unwrap());
        assert_eq!(render(&pipeline, &messages).unwrap(), case["rendered"].as_str().unwrap(), "{}", case["name"]);
    }
}

#[test]
fn a_rendered_chat_gets_no_second_begin_of_sequence() {
    let pipeline = with_template("{{ bos_token }} {% for m in messages %}{{ m.content }}{% endfor %}");
    assert_eq!(pipeline.encode(&Input::Messages(vec![Message::user("world")])).unwrap(), [0, 4]);
    // Nor a first one, if the template has none.
    let pipeline = with_template("{{ messages[0].content }}");
    assert_eq!(pipeline.encode(&Input::Messages(vec![Message::user("world")])).unwrap(), [4]);
}

#[test]
fn the_jinja_file_comes_before_the_config_and_the_config_before_gguf() {
    let mut files = tiny_llama_files();
    let mut text = TextFiles::from_files(files.clone());
    let mut gguf = metadata("tokenizers/sentencepiece.gguf.json");
    gguf.insert("tokenizer.chat_template", GgufValue::String("from gguf".into()));
    text.gguf = Some(Arc::new(gguf));
    let say =
        |text: &TextFiles| TextPipeline::open("model", text).unwrap().template.render(&[Message::user("Hi")]).unwrap();
    assert!(say(&text).starts_with("<|im_start|>user"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat_template.jinja");
    fs_err::write(&path, "from the file").unwrap();
    files.insert("chat_template.jinja".into(), path);
    text.files = files;
    assert_eq!(say(&text), "from the file");
    text.files.remove("chat_template.jinja");
    text.files.remove("tokenizer_config.json");
    assert_eq!(say(&text), "from gguf");
}

#[test]
fn of_a_list_of_templates_the_default_is_taken() {
    let config = |names: &[&str]| {
        let list: Vec<_> = names.iter().map(|n| json!({"name": n, "template": format!("I am {n}")})).collect();
        from_files(&[("tokenizer.json", word_tokenizer()), ("tokenizer_config.json", json!({"chat_template": list}))])
            .unwrap()
    };
    let hello = [Message::user("hello")];
    assert_eq!(render(&config(&["tool_use", "default"]), &hello).unwrap(), "I am default");
    let pipeline = config(&["tool_use", "rag"]);
    assert!(pipeline.has_chat_template());
    let error = render(&pipeline, &hello).unwrap_err().to_string();
    assert!(error.contains("only: tool_use, rag"), "{error}");
}

#[test]
fn a_chat_with_a_model_without_template_is_refused_with_the_way_out() {
    let pipeline = from_files(&[("tokenizer.json", word_tokenizer())]).unwrap();
    assert!(!pipeline.has_chat_template());
    let error = pipeline.encode(&Input::Messages(vec![Message::user("hello")])).unwrap_err();
    assert_eq!(error.code(), "unsupported");
    assert!(error.to_string().contains("model has no chat template") && error.to_string().contains("plain text"));
}

#[test]
fn what_a_template_raises_is_the_message_of_an_invalid_request() {
    let pipeline = with_template(
        "{% if messages[0].role == 'tool' %}{{ raise_exception('Roles must alternate: ' ~ messages[0].role) }}{% endif %}x",
    );
    assert_eq!(render(&pipeline, &[Message::user("hello")]).unwrap(), "x");
    let error = render(&pipeline, &[Message::new(Role::Tool, "1")]).unwrap_err();
    assert_eq!(error.code(), "invalid_spec");
    let message = error.to_string();
    assert!(message.contains("the chat template of model refuses them: Roles must alternate: tool"), "{message}");
}

#[test]
fn a_template_that_does_not_parse_leaves_text_usable_and_names_its_line() {
    let pipeline = with_template("fine\n{% for m in %}");
    assert!(pipeline.has_chat_template());
    assert_eq!(pipeline.encode(&Input::from("hello")).unwrap(), [0, 3]);
    let error = render(&pipeline, &[Message::user("hello")]).unwrap_err().to_string();
    assert!(error.contains("chat template of model cannot be used") && error.contains("chat_template:2"), "{error}");
}

#[test]
fn a_template_that_never_ends_or_floods_is_stopped() {
    let endless =
        "{% for a in range(9999) %}{% for b in range(9999) %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}";
    let doubling = "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    let nested = "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}";
    let deep = "{% set ns = namespace(s=[1]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}";
    let output = "{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}";
    for (template, why) in [
        (endless, "fuel"),
        (doubling, "fuel"),
        (nested, "tojson: the value has more than"),
        (deep, "tojson: the value has more than"),
        (output, "its output has more than"),
    ] {
        let error = render(&with_template(template), &[Message::user("hello")]).unwrap_err();
        assert_eq!(error.code(), "generation_failed");
        assert!(error.to_string().contains(why), "{template}: {error}");
    }
}

#[test]
fn a_long_chat_is_not_stopped() {
    let chat: Vec<Message> = (0..2000).map(|n| Message::user(format!("{n} ").repeat(200))).collect();
    let text = render(&tiny_llama(), &chat).unwrap();
    assert!(text.len() > chat.iter().map(|m| m.content.len()).sum());
}

#[test]
fn a_template_may_ask_for_the_date_and_a_bad_format_is_its_error() {
    let date = render(&with_template("{{ strftime_now('%Y-%m-%d') }}"), &[Message::user("x")]).unwrap();
    assert!(date.len() == 10 && date.starts_with("20"), "{date}");
    let error = render(&with_template("{{ strftime_now('%Q') }}"), &[Message::user("x")]).unwrap_err().to_string();
    assert!(error.contains("strftime_now cannot write `%Q`"), "{error}");
}
