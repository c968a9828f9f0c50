/* Classifies images: reads BINEP_INPUTS bytes for each from the standard input, and prints a line
   with its class and the scores of all classes.

       cc -std=c99 -O2 @stem@_test.c -o @stem@_test && ./@stem@_test < images */
#include <stdio.h>

#include "@header@"

int main(void)
{
    static binep_memory memory;
    static uint8_t image[BINEP_INPUTS];
    float scores[BINEP_CLASSES];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {
        printf("%d", binep_classify(image, &memory, scores));
        for (int c = 0; c < BINEP_CLASSES; c++)
            printf(" %.9g", (double)scores[c]);
        printf("\n");
    }
    return 0;
}
