// Two soft tones, made here: no file, and nothing to load.

let context = null;

/** Browsers let a page sound only once somebody has pressed something in it. */
export async function chime() {
  try {
    context ??= new AudioContext();
    await context.resume();
    for (const [index, hertz] of [587.33, 880].entries()) tone(hertz, context.currentTime + 0.02 + 0.16 * index);
  } catch {
    // A page without sound
  }
}

function tone(hertz, at) {
  const source = context.createOscillator();
  const loudness = context.createGain();
  source.frequency.value = hertz;
  loudness.gain.setValueAtTime(0, at);
  loudness.gain.linearRampToValueAtTime(0.12, at + 0.02);
  loudness.gain.exponentialRampToValueAtTime(0.001, at + 0.5);
  source.connect(loudness).connect(context.destination);
  source.start(at);
  source.stop(at + 0.55);
}
