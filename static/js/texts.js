// Every word the page's script says. What the server says (errors, notes, the model's state) comes from the server.

import { count, seconds } from "./dom.js";

export const TEXT = {
  brand: "Ponder",
  newChat: "New chat",
  chats: "Chats",
  noChats: "Your chats will be listed here.",
  showMore: "Show more",
  isBeingAnswered: "is being answered",
  deleteChat: (title) => `Delete ${title}`,

  model: "Model",
  starting: "Starting",
  cannotAnswer: "cannot answer",
  notReachable: "The server cannot be reached.",
  loadingModel: "Loading the model",

  question: "Your question",
  effort: "How long to think",
  effortTokens: (tokens) => (tokens ? `Thinks for up to ${count(tokens)} tokens` : "Answers without thinking first"),
  send: "Send",
  stop: "Stop",
  hint: "Enter sends, Shift+Enter breaks the line. Answers can be wrong.",
  writeFirst: "Write something first.",
  leavesOut: (turns) => {
    const what = turns === 1 ? "the oldest question and its answer" : `the oldest ${turns} questions and their answers`;
    return `This chat is long: the model will not see ${what} with your next message.`;
  },

  conversation: "Conversation",
  jump: "Jump to latest",
  you: "You",
  answer: "Answer",
  copy: "Copy",
  copied: "Copied",
  askAgain: "Ask again",
  thinking: (s) => `Thinking … ${seconds(s)}`,
  thoughtFor: (s) => `Thought for ${seconds(s)}`,
  writing: "Writing …",
  tokens: (tokens) => `${count(tokens)} tokens`,
  rate: (perSecond) => `${perSecond.toFixed(1)} tok/s`,
  reconnecting: "The connection is lost. Trying to come back …",
  waitingFor: (stage) => `Waiting for the model: ${stage.toLowerCase()} …`,
  waitingBehind: (place) =>
    place > 1 ? `Waiting: ${place} questions are before yours.` : place === 1 ? "Waiting: one question is before yours." : "Waiting for its turn.",
  endings: {
    stopped: "Stopped. What was written is kept.",
    interrupted: "The server was restarted in the middle of this. What was written is kept.",
    failed: "This could not be answered.",
  },
  ready: "The answer is ready.",
  ended: "The answer has ended.",

  reasoning: "Reasoning",
  reasoningPanel: "Reasoning panel",
  reasoningText: "Reasoning text",
  noReasoning: "What the model thinks before it answers is shown here.",
  closePanel: "Close the reasoning panel",
  answerNow: "Answer now",
  answerNowHint: "Stop reasoning and write the answer from it",
  budget: "Reasoning budget",
  ofBudget: (written, budget) => `${count(written)} of ${count(budget)} tokens`,

  welcome: "Ask something hard.",
  welcomeAbout: "Watch the model think beside the chat, then read its answer here.",
  whoAnswers: ({ state, title, is_demo: isDemo }) => {
    if (!title) return "";
    if (state === "failed") return `${title} cannot answer right now.`;
    const who = isDemo ? `${title} answers: a small stand-in, often wrong.` : `${title} answers.`;
    return state === "ready" ? who : `${title} is still loading. You can ask already; your question waits in line.`;
  },
  examples: [
    "How many times does the letter r occur in “strawberry”?",
    "Prove that the square root of 2 is irrational.",
    "A bat and a ball cost $1.10 together, and the bat costs $1 more than the ball. What does the ball cost?",
    "Write a Python function that finds the longest palindrome in a string, and say how fast it is.",
  ],
  missing: "This chat is not here.",
  missingAbout: "It may have been deleted, or it belongs to another browser.",
  startNew: "Start a new chat",
  notLoaded: "This chat could not be loaded.",
  tryAgain: "Try again",

  notice: {
    title: "Before you ask",
    points: [
      ["It is kept.", "What you write and what the model answers is kept on this server, under a cookie of this browser. Whoever runs the server can read it. You can delete a chat at any time."],
      ["Answers can be wrong,", "also when they sound sure and when the reasoning looks careful. Check what matters."],
      ["QwQ is strong at mathematics and code,", "and weak at common sense and nuance. It may switch languages or go round in circles; “Answer now” ends that."],
    ],
    demo: ["A small demo model answers right now.", "It shows how Ponder works; its answers are often nonsense."],
    yes: "I understand",
    no: "Not now",
  },
  deletion: {
    title: "Delete this chat?",
    about: (title) => `“${title}” and its reasoning will be gone for good.`,
    yes: "Delete",
    no: "Keep",
  },

  unreachable: "The server cannot be reached. Your text is still here; try again in a moment.",
  wentWrong: "Something went wrong on the server.",
};
