// For node: pauses of a second to forty last a fiftieth of that. A CLI that tries a refused request again after fixed
// pauses does so as often as ever, and is done in seconds.
const real = globalThis.setTimeout;
const hurried = (call, ms, ...rest) => real(call, ms >= 1000 && ms <= 40000 ? ms / 50 : ms, ...rest);
globalThis.setTimeout = Object.assign(hurried, real);
