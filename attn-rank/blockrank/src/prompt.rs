//! Prompts of an instruction, documents and a query (feature `model`).
//!
//! Segments are encoded one by one, so that the tokens of a document do not depend on its neighbours. A text
//! that spells a special token of the model becomes that token, and one that spells the marker of another
//! document looks like its beginning: texts from strangers should be cleaned first.

use attn_core::Error as CoreError;
use attn_model::{Message, Result, Tokenizer};

/// What documents are ranked for where nobody says it.
pub const TASK: &str = "Each of the {documents} documents below has an ID. Find those that answer the query, and give \
                        their IDs, the best one first.";

/// The texts around documents and query. `{task}`, `{query}`, `{documents}` (their number) and `{id}` are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// What stands in front of the documents; knows `{task}`, `{query}` and `{documents}`. Without `{query}`, which
    /// costs quality, the keys and values of documents do not depend on the query and can be kept:
    /// [`Template::for_many_queries`].
    pub instruction: String,
    /// In front of the text of a document; knows `{id}`.
    pub document_start: String,
    /// Behind it; knows `{id}`. Stays where a document is cut.
    pub document_end: String,
    /// What is asked of the documents; knows `{query}` and `{documents}`.
    pub query: String,
    /// What the answer begins with, up to its first token.
    pub answer: String,
    /// Whether tokens are added that the model wants in front of a text.
    pub add_special: bool,
}

impl Default for Template {
    /// Documents as `ID: 7 | CONTENT: text | END ID: 7`, each on a line, and `Final Answer: [`, as in the paper;
    /// the query in the instruction and behind the documents.
    fn default() -> Self {
        Template {
            instruction: "{task}\nQuery: {query}\nDocuments:".into(),
            ..Template::for_many_queries()
        }
    }
}

impl Template {
    /// The same without the query in the instruction.
    pub fn for_many_queries() -> Self {
        Template {
            instruction: "{task}\nDocuments:".into(),
            document_start: "\nID: {id} | CONTENT: ".into(),
            document_end: " | END ID: {id}".into(),
            query: "\n====\nWhich documents answer the query best?\nQuery: {query}\n".into(),
            answer: "Final Answer: [".into(),
            add_special: true,
        }
    }

    /// The same inside of a turn of the user, as the tokenizer's chat template writes it; the answer is the
    /// beginning of the assistant's. The marks of the turns are in the instruction and in the query segment.
    ///
    /// # Errors
    /// As [`Tokenizer::chat`], and [`CoreError::Data`] for a template that does not write what the user says.
    pub fn in_chat(self, tokenizer: &Tokenizer) -> Result<Template> {
        const CONTENT: &str = "What the user says.";
        let text = tokenizer.chat(&[Message::new("user", CONTENT)], true)?;
        let Some((before, behind)) = text.split_once(CONTENT) else {
            let expected = "a chat template that writes what the user says";
            return Err(CoreError::data("template", expected, format!("{text:?}")).into());
        };
        Ok(Template {
            instruction: format!("{before}{}", self.instruction),
            answer: format!("{behind}{}", self.answer),
            add_special: false,
            ..self
        })
    }

    /// Whether the instruction has the query.
    pub fn asks_first(&self) -> bool {
        self.instruction.contains("{query}")
    }
}

/// A document to be ranked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The text.
    pub text: String,
    /// What it is called in the prompt; its number where it is not set. Documents that differ in their name only
    /// can get different scores.
    pub id: Option<String>,
}

impl<T: Into<String>> From<T> for Document {
    fn from(text: T) -> Self {
        Document { text: text.into(), id: None }
    }
}

/// A document that was longer than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Number of the document.
    pub document: usize,
    /// Tokens of its text.
    pub tokens: usize,
    /// Those that are in the prompt.
    pub kept: usize,
}

/// Instruction and documents as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Context {
    /// All tokens, segment after segment.
    pub tokens: Vec<u32>,
    /// Tokens of the instruction and of each document.
    pub lengths: Vec<usize>,
    /// Documents that were cut.
    pub cuts: Vec<Cut>,
}

/// Makes tokens of prompts.
#[derive(Debug, Clone)]
pub struct PromptBuilder {
    tokenizer: Tokenizer,
    template: Template,
    max_document: Option<usize>,
}

impl PromptBuilder {
    /// With the texts of a template, and documents of any length.
    pub fn new(tokenizer: Tokenizer, template: Template) -> PromptBuilder {
        PromptBuilder { tokenizer, template, max_document: None }
    }

    /// The same with another template.
    pub fn with_template(self, template: Template) -> PromptBuilder {
        PromptBuilder { template, ..self }
    }

    /// The same with documents of at most `tokens` tokens, marks included: of a longer one, the end of the text is
    /// cut off. The paper has 160 for short passages, 384 for longer ones.
    pub fn with_max_document(self, tokens: usize) -> PromptBuilder {
        PromptBuilder { max_document: Some(tokens), ..self }
    }

    /// The template.
    pub fn template(&self) -> &Template {
        &self.template
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Instruction and documents; the task is [`TASK`] where none is given.
    ///
    /// # Errors
    /// Those of the tokenizer, and [`CoreError::Config`] where the marks of a document alone take more tokens than
    /// one may have.
    pub fn context(
        &self,
        task: Option<&str>,
        documents: &[Document],
        query: &str,
    ) -> Result<Context> {
        let count = documents.len().to_string();
        let task = match task {
            Some(task) => task.to_owned(),
            None => fill(TASK, &[("{documents}", &count)]),
        };
        let values = [("{task}", task.as_str()), ("{query}", query), ("{documents}", &count)];
        let instruction = fill(&self.template.instruction, &values);
        let mut tokens = self.tokenizer.encode(&instruction, self.template.add_special)?;
        let (mut lengths, mut cuts) = (vec![tokens.len()], Vec::new());
        for (number, document) in documents.iter().enumerate() {
            let (own, cut) = self.document(number, document)?;
            lengths.push(own.len());
            tokens.extend(own);
            cuts.extend(cut);
        }
        Ok(Context { tokens, lengths, cuts })
    }

    /// The query segment, which ends with what the answer begins with.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn query(&self, documents: usize, query: &str) -> Result<Vec<u32>> {
        let count = documents.to_string();
        let values = [("{query}", query), ("{documents}", count.as_str())];
        let text = fill(&self.template.query, &values);
        self.tokenizer.encode(&(text + &self.template.answer), false)
    }

    /// Tokens of a document with its marks.
    fn document(&self, number: usize, document: &Document) -> Result<(Vec<u32>, Option<Cut>)> {
        let number_text = number.to_string();
        let id = document.id.as_deref().unwrap_or(&number_text);
        let [start, end] = [&self.template.document_start, &self.template.document_end]
            .map(|text| fill(text, &[("{id}", id)]));
        let encode = |text: &str| self.tokenizer.encode(text, false);
        let whole = encode(&format!("{start}{}{end}", document.text))?;
        let Some(most) = self.max_document.filter(|most| whole.len() > *most) else {
            return Ok((whole, None));
        };
        // In pieces, as only then it is known which tokens are the text's.
        let (mut tokens, text, end) = (encode(&start)?, encode(&document.text)?, encode(&end)?);
        let marks = tokens.len() + end.len();
        let Some(room) = most.checked_sub(marks) else {
            let expected = format!("at least {marks}, the marks of document {number}");
            return Err(CoreError::config("max_document", expected, most).into());
        };
        let kept = room.min(text.len());
        tokens.extend(&text[..kept]);
        tokens.extend(end);
        Ok((tokens, Some(Cut { document: number, tokens: text.len(), kept })))
    }
}

/// The template with values in place of their names, which are not looked for in values.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        let (before, name) = rest.split_at(start);
        text.push_str(before);
        match values.iter().find(|(known, _)| name.starts_with(known)) {
            Some((known, value)) => {
                text.push_str(value);
                rest = &name[known.len()..];
            }
            None => {
                text.push('{');
                rest = &name[1..];
            }
        }
    }
    text + rest
}
