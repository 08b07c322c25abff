// The built-in example: a dozen pictures, and texts for a picture as the query.

const PICTURES = [
  "fox", "green-apple", "police-car", "cat-face", "lion-face", "pear",
  "taxi", "tiger-face", "red-apple", "fire-engine", "grinning-cat-face", "dog-face",
];

export const EXAMPLES = [
  { label: "a lion", sample: "lion-face", query: "a lion", pictures: PICTURES },
  { label: "a green apple", sample: "green-apple", query: "a green apple", pictures: PICTURES },
  { label: "a pear", sample: "pear", query: "a pear", pictures: PICTURES },
  {
    label: "words for a picture",
    sample: "fire-engine",
    query: "",
    queryPicture: "fire-engine",
    texts: ["a fire engine", "a police car", "a taxi", "a bus", "an ambulance", "a red apple", "a fox", "a bicycle"],
  },
];

export const exampleUrl = (name) => `page/example/${name}.png`;

// An example's picture as a file.
export async function examplePicture(name) {
  const response = await fetch(exampleUrl(name));
  if (!response.ok) throw new Error(`the example ${name} is missing`);
  return new File([await response.blob()], `${name}.png`, { type: "image/png" });
}
