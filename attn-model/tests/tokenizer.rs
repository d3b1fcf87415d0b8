//! Tokens of texts, texts of tokens, and conversations.

mod common;

use attn_model::gguf::Gguf;
use attn_model::{Blob, Error, Message, Source, Tokenizer};
use common::{data, write};
use serde_json::Value;

fn json(path: &std::path::Path) -> Value {
    println!("{}", path.display());
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn tiny() -> Tokenizer {
    Source::open(data("models/tiny-llama")).unwrap().tokenizer().unwrap().unwrap()
}

fn check(tokenizer: &Tokenizer, cases: &Value) {
    for case in cases["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let tokens = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokens, ids(&case["ids"]), "{text:?}");
        let decoded = case["decoded"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), decoded, "{text:?}");
        assert_eq!(streamed(tokenizer, &tokens), decoded, "{text:?}");
    }
}

/// The pieces of a stream, joined. No piece ends in half a character.
fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let mut stream = tokenizer.decode_stream();
    let mut pieces = Vec::new();
    for token in tokens {
        pieces.push(stream.push(*token).unwrap());
    }
    pieces.push(stream.finish().unwrap());
    let text = pieces.concat();
    let half = |piece: &String| piece.contains('\u{FFFD}');
    assert!(half(&text) || !pieces.iter().any(half));
    text
}

#[test]
fn cases_of_the_small_model() {
    let cases = json(&data("models/tiny-llama/tokenizer-cases.json"));
    check(&tiny(), &cases);
    let gguf = Source::open(data("gguf/tiny-llama-mixed.gguf")).unwrap();
    check(&gguf.tokenizer().unwrap().unwrap(), &cases);
}

#[test]
fn cases_of_smollm2() {
    let Some(path) = common::smollm2() else {
        return;
    };
    let tokenizer = Source::open(path).unwrap().tokenizer().unwrap().unwrap();
    for path in common::golden("smollm2", "tokenizer-cases.json") {
        let cases = json(&path);
        check(&tokenizer, &cases);
        for case in cases["chat"].as_array().unwrap() {
            let messages = case["messages"].as_array().unwrap();
            let field = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
            let turns: Vec<_> = messages
                .iter()
                .map(|m| Message::new(field(m, "role"), field(m, "content")))
                .collect();
            let reply = case["add_generation_prompt"].as_bool().unwrap();
            let text = tokenizer.chat(&turns, reply).unwrap();
            assert_eq!(text, case["text"].as_str().unwrap());
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids(&case["ids"]));
            // Any serialisable messages will do.
            let template = tokenizer.template("default").unwrap();
            assert_eq!(template.render(messages, reply).unwrap(), text);
        }
    }
}

#[test]
fn a_stream_gives_whole_characters_and_all_bytes() {
    let tokenizer = tiny();
    let emoji = tokenizer.encode("a😀b", false).unwrap();
    assert!(emoji.len() > 3, "the character takes several tokens");
    let mut stream = tokenizer.decode_stream();
    let pieces: Vec<String> = emoji.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces.concat(), "a😀b");
    assert!(pieces.iter().any(String::is_empty));
    // Cut within the character, and then something else: the stream says what decode says.
    let mut broken = emoji[..3].to_vec();
    assert_eq!(streamed(&tokenizer, &broken), tokenizer.decode(&broken).unwrap());
    broken.extend(&emoji[..1]);
    broken.extend(&emoji[2..4]);
    broken.extend(&emoji[2..3]);
    assert_eq!(streamed(&tokenizer, &broken), tokenizer.decode(&broken).unwrap());
    // Every token after every other.
    let all: Vec<u32> = (0..320).flat_map(|i| [i, i * 7 % 320, i * 31 % 320]).collect();
    assert_eq!(streamed(&tokenizer, &all), tokenizer.decode(&all).unwrap());
}

#[test]
fn truncation_and_padding_are_off() {
    let mut json = json(&data("models/tiny-llama/tokenizer.json"));
    json["truncation"] = serde_json::json!({
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
    });
    json["padding"] = serde_json::json!({
        "strategy": { "Fixed": 64 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "x"
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    let text = "a text of more than four tokens";
    let tokens = tokenizer.encode(text, true).unwrap();
    assert_eq!(tokens, tiny().encode(text, true).unwrap());
}

#[test]
fn special_tokens_can_be_left_out() {
    let tokenizer = tiny();
    let tokens = tokenizer.encode("<|im_start|>ab<|im_end|>", false).unwrap();
    assert_eq!((tokens[0], *tokens.last().unwrap()), (1, 2));
    assert_eq!(tokenizer.decode_plain(&tokens).unwrap(), "ab");
    assert_eq!(tokenizer.token("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.vocabulary(), 320);
    // Models have rows for tokens that do not exist.
    assert_eq!(tokenizer.decode(&[319, 5000]).unwrap(), tokenizer.decode(&[319]).unwrap());
}

fn render(source: &str, variables: Value) -> Result<String, Error> {
    let tokenizer = tiny().with_template(source);
    let turns = [Message::new("user", " Hi ")];
    tokenizer.template("default")?.render_with(&turns, true, variables)
}

#[test]
fn templates_know_what_those_of_models_use() {
    let tools = serde_json::json!({ "tools": [{ "name": "f<é>", "n": 1, "list": [] }] });
    for (source, expected) in [
        ("{{ messages[0].content.strip() }}|{{ messages[0]['content'] | trim }}", "Hi|Hi"),
        ("{{ 'ab'.startswith('a') }} {{ 'a,b'.split(',')[-1] }}", "True b"),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        (
            "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = 5 %}{% endfor %}{{ ns.x }}",
            "5",
        ),
        ("  {% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),
        ("{{ tools | tojson }}", r#"[{"list": [], "n": 1, "name": "f<é>"}]"#),
        (
            "{{ tools[0] | tojson(indent=2) }}",
            "{\n  \"list\": [],\n  \"n\": 1,\n  \"name\": \"f<é>\"\n}",
        ),
        ("{{ bos_token }}{{ add_generation_prompt }}", "<|im_start|>True"),
        ("{{ strftime_now('%Y') | int > 2024 }}", "True"),
        ("{{ x is defined }}{{ messages[1:] }}", "False[]"),
        ("{% macro f(a) %}[{{ a }}]{% endmacro %}{{ f(1) }}", "[1]"),
        ("{{ {'a': 1}.items() | list | length }}", "1"),
        ("{{ messages[0].role.title() ~ messages | length }}", "User1"),
        ("a {%- generation -%} b {%- endgeneration %} c", "ab c"),
        ("{{ '<b>' }}{{ none is none }}", "<b>True"),
    ] {
        assert_eq!(render(source, tools.clone()).unwrap(), expected, "{source}");
    }
}

#[test]
fn templates_fail_with_a_reason() {
    for (source, reason) in [
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{% for %}", "syntax error"),
        ("{%} x", "syntax error"),
        ("{{ strftime_now('%Q') }}", "date format"),
        ("{{ nothing_known() }}", "nothing_known"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "fuel"),
        ("{{ [2] * 90000000 }}", "longer than"),
        ("{{ [2] * 8000000 }}", "longer than"),
    ] {
        let error = render(source, Value::Null).unwrap_err();
        assert!(matches!(error, Error::Template { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let error = tiny().template("gone").unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
}

#[test]
fn templates_have_names() {
    let config = br#"{"bos_token": {"content": "<s>"}, "chat_template":
        [{"name": "tool_use", "template": "T{{ bos_token }}"}, {"name": "default", "template": "D"}]}"#;
    let tokenizer = tiny().with_config_json("config", config).unwrap();
    assert_eq!(tokenizer.templates().collect::<Vec<_>>(), ["default", "tool_use"]);
    assert_eq!(tokenizer.chat(&[], false).unwrap(), "D");
    let template = tokenizer.template("tool_use").unwrap();
    assert_eq!(template.render::<Message>(&[], false).unwrap(), "T<s>");
    // And come back when they are written.
    let again = tiny().with_config_json("again", tokenizer.config_json().to_string().as_bytes());
    assert_eq!(again.unwrap().config_json(), tokenizer.config_json());
    for bad in [&br#"{"chat_template": 3}"#[..], br#"{"bos_token": 3}"#, b"[]", b"{"] {
        assert!(matches!(tiny().with_config_json("bad", bad), Err(Error::Format { .. })));
    }
}

fn words(edit: impl Fn(&mut write::Gguf)) -> Result<Tokenizer, Error> {
    let mut gguf = write::Gguf::default();
    gguf.string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &["<e>", "a", "b", "ab"])
        .strings("tokenizer.ggml.merges", &["a b"])
        .ints("tokenizer.ggml.token_type", &[3, 1, 1, 1]);
    edit(&mut gguf);
    Tokenizer::from_gguf(&Gguf::read(Blob::from_bytes("words", gguf.bytes())).unwrap())
}

#[test]
fn tokenizers_in_gguf() {
    let tokenizer = words(|_| ()).unwrap();
    assert_eq!(tokenizer.encode("abb<e>a", false).unwrap(), [3, 2, 0, 1]);
    let replaced = |at: usize, edit: &dyn Fn(&mut write::Gguf)| {
        words(|gguf| {
            let mut other = write::Gguf::default();
            edit(&mut other);
            gguf.keys[at] = other.keys[0].clone();
        })
        .unwrap_err()
        .to_string()
    };
    let string = |key: &'static str, value: &'static str| {
        move |gguf: &mut write::Gguf| {
            gguf.string(key, value);
        }
    };
    let error = replaced(0, &string("tokenizer.ggml.model", "llama"));
    assert!(error.contains("tokenizer.ggml.model llama is not supported"), "{error}");
    let error = replaced(1, &string("tokenizer.ggml.pre", "llama-bpe"));
    assert!(error.contains("tokenizer.ggml.pre llama-bpe"), "{error}");
    let error = replaced(2, &string("x", "y"));
    assert!(error.contains("tokenizer.ggml.tokens"), "{error}");
    let error = replaced(3, &|g| {
        g.strings("tokenizer.ggml.merges", &["a"]);
    });
    assert!(error.contains("one space"), "{error}");
    let error = replaced(3, &|g| {
        g.strings("tokenizer.ggml.merges", &["a z"]);
    });
    assert!(error.starts_with("tokenizer: "), "{error}");
    let error = replaced(4, &|g| {
        g.ints("tokenizer.ggml.token_type", &[3, 1]);
    });
    assert!(error.contains("4 types"), "{error}");
    let error = replaced(4, &|g| {
        g.ints("tokenizer.ggml.token_type", &[3, 1, 1, 6]);
    });
    assert!(error.contains("token_type 6"), "{error}");
}
