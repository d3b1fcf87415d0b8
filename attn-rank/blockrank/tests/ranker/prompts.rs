//! Tokens of prompts.

use attn_blockrank::prompt::{Cut, Document, PromptBuilder, Template};

use crate::support::tokenizer;

fn documents(texts: &[&str]) -> Vec<Document> {
    texts.iter().map(|&text| Document::from(text)).collect()
}

/// The text of every segment.
fn segments(builder: &PromptBuilder, texts: &[&str], query: &str) -> Vec<String> {
    let context = builder.context(Some("Rank."), &documents(texts), query).unwrap();
    let mut start = 0;
    let mut own = |len: &usize| {
        start += len;
        builder.tokenizer().decode(&context.tokens[start - len..start]).unwrap()
    };
    context.lengths.iter().map(&mut own).collect()
}

#[test]
fn segments_have_their_marks() {
    let builder = PromptBuilder::new(tokenizer(), Template::default());
    let got = segments(&builder, &["a whale", "", "{query} {id}"], "who {id}?");
    assert_eq!(got[0], "Rank.\nQuery: who {id}?\nDocuments:");
    assert_eq!(got[1], "\nID: 0 | CONTENT: a whale | END ID: 0");
    assert_eq!(got[2], "\nID: 1 | CONTENT:  | END ID: 1");
    // What looks like a name in a text of the caller's is left alone.
    assert_eq!(got[3], "\nID: 2 | CONTENT: {query} {id} | END ID: 2");
    let query = builder.query(3, "who?").unwrap();
    let query = builder.tokenizer().decode(&query).unwrap();
    assert!(query.contains("Query: who?") && query.ends_with("Final Answer: ["), "{query}");
    let default = builder.context(None, &documents(&["x"]), "q").unwrap();
    let default = builder.tokenizer().decode(&default.tokens).unwrap();
    assert!(default.starts_with("Each of the 1 documents below"), "{default}");
    let named = Document { text: "x".into(), id: Some("B7".into()) };
    let named = builder.context(None, &[named], "q").unwrap();
    let named = builder.tokenizer().decode(&named.tokens).unwrap();
    assert!(named.ends_with("ID: B7 | CONTENT: x | END ID: B7"), "{named}");
}

#[test]
fn long_documents_keep_their_end() {
    let long = "word ".repeat(60);
    let whole = PromptBuilder::new(tokenizer(), Template::default());
    let all = whole.context(None, &documents(&["short", &long]), "q").unwrap();
    assert!(all.cuts.is_empty());
    let builder = whole.clone().with_max_document(60);
    let context = builder.context(None, &documents(&["short", &long]), "q").unwrap();
    assert_eq!(context.lengths[..2], all.lengths[..2]);
    assert_eq!(context.lengths[2], 60);
    let tokens = builder.tokenizer().encode(&long, false).unwrap().len();
    let [Cut { document: 1, tokens: of, kept }] = context.cuts[..] else { panic!() };
    assert!(of == tokens && kept < tokens && kept > 0);
    let text = builder.tokenizer().decode(&context.tokens).unwrap();
    assert!(text.ends_with(" | END ID: 1"), "{text}");
    let start = "\nID: 1 | CONTENT: word word";
    assert!(text.contains(start), "{text}");
    let error = whole.with_max_document(5).context(None, &documents(&[&long]), "q").unwrap_err();
    assert!(error.to_string().contains("the marks of document 0"), "{error}");
}

#[test]
fn a_turn_of_a_chat() {
    let tokenizer = tokenizer();
    let template = Template::default().in_chat(&tokenizer).unwrap();
    let builder = PromptBuilder::new(tokenizer, template);
    let got = segments(&builder, &["a"], "q");
    assert_eq!(got[0], "<|im_start|>user\nRank.\nQuery: q\nDocuments:");
    let query = builder.query(1, "q").unwrap();
    let query = builder.tokenizer().decode(&query).unwrap();
    assert!(query.ends_with("<|im_end|>\n<|im_start|>assistant\nFinal Answer: ["), "{query}");
    assert!(builder.template().asks_first());
    assert!(!Template::for_many_queries().asks_first());
}
